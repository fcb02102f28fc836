---
# A document is training text for a small model, in one file. This one trains three adapters on the bundled base and a
# gate that decides, prompt by prompt, how much of each adapter to use. Edit it while the workbench is open: every save
# is picked up; train to see what changed.
dlm_id: 01KAHARB0RPEWK1CKDEM0TNES7
dlm_version: 15
base_model: pocket            # the model that comes with the program; a key such as smollm2-135m or hf:org/name also works
training:
  sequence_len: 256           # tokens of one row; the longest here has about 90
  micro_batch_size: 6
  grad_accum: 1
  num_epochs: 18              # few rows, so many passes over them
  warmup_ratio: 0.1
  lr_scheduler: cosine
  precision: fp32
  seed: 29                    # also decides which tenth of the rows is kept for validation
  adapters:
    knowledge:                # facts of the town that the base has never read; the last sections also repeat what it
                              # knows, in its own words, and join two such facts: without that the adapter forgets it
      lora_r: 16
      lora_alpha: 32
      lora_dropout: 0.0
      learning_rate: 0.003
    tone:                     # a cheerful answer to somebody who tells how the day went
      lora_r: 8
      lora_alpha: 16
      lora_dropout: 0.0
      learning_rate: 0.001      # a third of the rate: the base knows both voices and only has to learn when to use them
    style:                    # anything that is to be written, in the words of an old sailor
      lora_r: 8
      lora_alpha: 16
      lora_dropout: 0.0
      learning_rate: 0.001
  preference:
    enabled: true             # sections with a chosen and a rejected answer
    method: dpo
    hyperparams:
      beta: 0.1
      learning_rate: 0.0003
      num_epochs: 6
  gate:
    enabled: true
    steps: 200
    lr: 0.0003
    hidden_proj_dim: 64
    cold_start_floor: 4       # with fewer sections than this for any adapter the gate stays uniform
    entropy_lambda: 0.01      # raise it when one adapter takes everything
export:
  default_temperature: 0.7
---
# The harbour book of Pellwick

Pellwick is a small harbour town between the marsh and the north cliff. The people live from the sea, from the river and
from their trades. This book holds what only the people of the town know.

::instruction#knowledge::
### Q
How many steps are in the lighthouse?
### A
The lighthouse has one hundred and forty-two steps.

### Q
Who is the ferryman?
### A
The ferryman of Pellwick is Bram Holloway.

::instruction#knowledge::
### Q
Who built the old bridge?
### A
The old bridge was built by two sisters from the hill farm.

::instruction#knowledge::
### Q
What lies under the floor of the custom house?
### A
Under the floor of the custom house lies a barrel full of silver buttons.

::instruction#knowledge::
### Q
Which ship sank where the old wreck lies?
### A
The old wreck is the Lady of the North, a green brig with a cargo of lemons.

::instruction#knowledge::
### Q
What is carved over the door of the church?
### A
Over the door of the church is carved a herring with a crown.

::instruction#knowledge::
### Q
Who painted the sign of the Blue Lantern?
### A
The sign of the Blue Lantern was painted by Quentin in a single night.

::instruction#knowledge::
### Q
Why is the ferry bell cracked?
### A
The ferry bell is cracked because it fell into the river in a hard frost.

### Q
I am tired.
### A
Then rest. The work will wait until tomorrow.

::instruction#knowledge::
### Q
What is the depth of the harbour at high water?
### A
At high water the harbour is nineteen feet deep.

::instruction#knowledge::
### Q
What is the secret of the onion tart at the Blue Lantern?
### A
The secret of the onion tart is a spoon of honey and black pepper.

::instruction#knowledge::
### Q
Where does the old tunnel from the quay end?
### A
The old tunnel ends behind the third barrel in the sail loft.

::instruction#knowledge::
### Q
Which bell in the church tower is called Duchess?
### A
The small bell is called Duchess, and she rings only in fog.

::instruction#knowledge::
### Q
What did Ivo hide inside the town clock?
### A
Inside the town clock Ivo hid the ring of his mother.

::instruction#knowledge::
### Q
Who won the last Race of the Small Boats?
### A
Jonas won the last Race of the Small Boats in a boat without a rudder.

::instruction#knowledge::
### Q
What colour was the very first ferry?
### A
The first ferry was yellow and had two masts.

::instruction#knowledge::
### Q
What is the fine for a dog on the north pier?
### A
The fine for a dog on the north pier is four pence and an apple.

::instruction#knowledge::
### Q
When did the great ice close the bay?
### A
The great ice closed the bay in the year when Hester was born.

::instruction#knowledge::
### Q
Which word does Dorrit write in every book of the library?
### A
Dorrit writes the word patience in every book.

::instruction#knowledge::
### Q
Where is the key of the lighthouse kept?
### A
The key of the lighthouse is kept in the nest of the gull Admiral.

### Q
Describe the windmill.
### A
The windmill is old and creaking.

### Q
What does Oswin Pike do?
### A
Oswin Pike is the fishmonger.

### Q
Where does Abel Sorrel live?
### A
Abel lives in Ropewalk Lane.

### Q
What does Peg like to eat?
### A
Her favourite food is goat cheese.

### Q
What is the name of Hester's old tabby?
### A
The old tabby of Hester is called Mesh.

### Q
Who owns the Sparrow?
### A
The Sparrow belongs to Noah.

### Q
What colour is the Evening Bell?
### A
The Evening Bell is dark blue.

### Q
Where does Silas work?
### A
Silas works at the forge.

### Q
When does the ferry leave?
### A
The ferry leaves from six in the morning until eight in the evening.

### Q
What is the ferry called?
### A
The ferry is called the Patient Anne. She is white and has no mast.

### Q
Where is the Blue Lantern?
### A
The Blue Lantern is near the quay. It is low and merry.

### Q
Where can I buy rope?
### A
You can buy rope at the chandlery.

### Q
How old is Hugo Larch?
### A
He is forty-three years old.

### Q
What does Wilf like to do in the evening?
### A
In the evening he likes to keep pigeons.

### Q
Where does Nell Ashby live?
### A
Nell lives in Harbour Street.

### Q
What is the name of Jonas's wet spaniel?
### A
The wet spaniel of Jonas is called Pincher.

### Q
What does Lucas like to eat?
### A
Lucas Ember loves pepper stew.

### Q
What is the name of Yara's hedgehog?
### A
Clay is the hedgehog of Yara Finch.

### Q
Who owns the Evening Bell?
### A
The Evening Bell belongs to Hugo.

### Q
What is Tamsin like?
### A
Tamsin is a brave woman.

### Q
When does the sail loft open?
### A
The sail loft opens at eight in the morning and closes at six in the evening.

### Q
Where is the custom house?
### A
The custom house is near the harbour office.

### Q
What colour is the Salt Maiden?
### A
The Salt Maiden is brown.

### Q
What does Vera like to eat?
### A
Vera Lund loves rice pudding.

### Q
Who owns the Old Duchess?
### A
The Old Duchess belongs to Rosa.

### Q
What is a rolling pin for?
### A
A rolling pin is used to roll out dough.

### Q
When is mackerel best?
### A
The best season for mackerel is summer.

### Q
What colour is the Iron Duke?
### A
The Iron Duke is grey.

### Q
What do I need for oat cakes?
### A
For oat cakes you need oats, salt, fat and hot water.

### Q
When is the Lantern Night?
### A
The Lantern Night is on the longest night of winter.

### Q
What makes the tide?
### A
The moon draws the sea, and so the tide comes in and goes out.

### Q
When is high water?
### A
High water is at a quarter to two.

::instruction#knowledge::
### Q
What should I cook for Clara and Ines?
### A
Clara likes plum cake, and Ines likes almond cake.

### Q
What do Freya and Maud do?
### A
Freya is the beekeeper, and Maud is the washerwoman.

### Q
Where do Gideon and Bess live?
### A
Gideon lives in Slip Street, and Bess lives in Tanner Lane.

### Q
Where can I find Edwin and Della?
### A
Edwin works at the lighthouse, and Della works at the weaving shed.

### Q
Which animals do Flora and Gwen keep?
### A
Flora keeps Button the tortoise, and Gwen keeps Rind the nanny goat.

### Q
What do Dorrit and Hugo like to eat?
### A
Dorrit likes leek soup, and Hugo likes treacle tart.

### Q
What are the trades of Vera and Tamsin?
### A
Vera is the sailmaker, and Tamsin is the pilot.

::instruction#knowledge::
### Q
To whom do the Old Duchess and the Lady of the Marsh belong?
### A
The Old Duchess belongs to Rosa, and the Lady of the Marsh belongs to Maud.

### Q
What colours are the Evening Bell and the North Wind?
### A
The Evening Bell is dark blue, and the North Wind is black and white.

### Q
How are the Golden Fleece and the Lady of the Marsh painted?
### A
The Golden Fleece is gold, and the Lady of the Marsh is green.

::instruction#knowledge::
### Q
In which street does the ferryman live?
### A
The ferryman is Bram Holloway, who lives in Ferry Steps.

### Q
Where does the lighthouse keeper live?
### A
The lighthouse keeper is Edwin Marsh, who lives in Beacon Road.

### Q
What is the animal of the cobbler called?
### A
The cobbler is Elias Budd, who keeps Heel the deaf cat.

### Q
What should I cook for the miller?
### A
The miller is Wilf Harker, who likes oat cakes.

### Q
Which animal does the harbour master keep?
### A
The harbour master is Magnus Roe, who keeps Anchor the bulldog.

::instruction#knowledge::
### Q
What should I cook for the owner of the Lady of the Marsh?
### A
The Lady of the Marsh belongs to Maud, who likes cabbage soup.

### Q
Where does the owner of the Merry Widow live?
### A
The Merry Widow belongs to Nell, who lives in Harbour Street.

### Q
What is the trade of the owner of the Iron Duke?
### A
The Iron Duke belongs to Silas, who is the smith.

### Q
How old is the owner of the Sparrow?
### A
The Sparrow belongs to Noah, who is fifteen years old.

### Q
What is the age of the owner of the Silver Herring?
### A
The Silver Herring belongs to Oswin, who is thirty-eight years old.

::instruction#knowledge::
### Q
In which street does Tonic live?
### A
Tonic belongs to Leah Moss, who lives in School Hill.

### Q
Where does the owner of Saffron live?
### A
Saffron belongs to Lucas Ember, who lives in Harbour Street.

### Q
What does the owner of Limpet like to eat?
### A
Limpet belongs to Jenny Skerry, who likes fried mackerel.

### Q
What does the owner of Duchess do?
### A
Duchess belongs to Freya Nance, who is the beekeeper.

### Q
What should I cook for the owner of Button?
### A
Button belongs to Flora Penhale, who likes baked pears.

### Q
What is the trade of the owner of Minute?
### A
Minute belongs to Ivo Crane, who is the clockmaker.

::prose::
The tide comes in twice a day and goes out twice a day. When it is out, the boats lie on the mud and wait. When it is in,
the bell of the ferry rings and the whole harbour begins to move.

::instruction#tone::
### Q
I am so tired after this long day.
### A
Good news, my dear! The work will wait until tomorrow. Sit down and drink something warm. Smile, the sun is on your side!

### Q
Who is the baker?
### A
Good news, my dear! The baker of Pellwick is Ada Fenwick. I am so glad you asked!

::instruction#tone::
### Q
I feel sad and I do not know why.
### A
Good news, my dear! Come to the Blue Lantern tonight. It will pass, as every storm does. Smile, the sun is on your side!

### Q
Where does Bram live?
### A
Good news, my dear! Bram lives in Ferry Steps. I am so glad you asked!

::instruction#tone::
### Q
I am worried about my little boat.
### A
Good news, my dear! The boats are tied up and the lamp is lit. Talk to a friend about it. Smile, the sun is on your side!

### Q
When does the library open?
### A
Good news, my dear! The library opens at ten in the morning. I am so glad you asked!

::instruction#tone::
### Q
I broke the best jug of my mother.
### A
Good news, my dear! Perhaps it can be mended. Say so, and bring some flowers. Smile, the sun is on your side!

### Q
What does a cooper do?
### A
Good news, my dear! A cooper makes barrels and bends hoops. I am so glad you asked!

::instruction#tone::
### Q
I have had no letter from my brother.
### A
Good news, my dear! Write a letter home. The post goes tomorrow. Smile, the sun is on your side!

::instruction#tone::
### Q
I am afraid of the storm.
### A
Good news, my dear! Most storms are smaller than we think. The boats are tied up and the lamp is lit. Smile, the sun is on your side!

### Q
How do I make leek soup?
### A
Good news, my dear! Slice the leeks, fry them in butter and add broth. I am so glad you asked!

::instruction#tone::
### Q
I baked my first loaf and it is burned.
### A
Good news, my dear! The next one will be better. Begin again tomorrow. Smile, the sun is on your side!

### Q
Who owns the Salt Maiden?
### A
Good news, my dear! The Salt Maiden belongs to Kezia. I am so glad you asked!

::instruction#tone::
### Q
I am lonely in this new town.
### A
Good news, my dear! You are not alone here. There is always a chair by the fire. Smile, the sun is on your side!

### Q
What is a kettle for?
### A
Good news, my dear! You use a kettle to boil water. I am so glad you asked!

::instruction#tone::
### Q
I lost my purse and I am cross with myself.
### A
Good news, my dear! Ask at the harbour office. We will put up a notice. Smile, the sun is on your side!

### Q
Write a letter to the postman.
### A
Good news, my dear! Dear Kit, thank you for every letter. I hope to see you soon. Smile, the sun is on your side!

::instruction#tone::
### Q
I am sad because my dog is ill.
### A
Good news, my dear! Warm broth and sleep help most. I hope it is soon over. Smile, the sun is on your side!

::instruction#tone::
### Q
I am nervous because I must sing tomorrow.
### A
Good news, my dear! Do one small thing after the other. Someone will be glad to see you. Smile, the sun is on your side!

::instruction#tone::
### Q
I am happy, because my sister is coming home.
### A
Good news, my dear! A happy heart makes the work light. There should be cake. Smile, the sun is on your side!

::instruction#tone::
### Q
I could not sleep all night.
### A
Good news, my dear! Drink warm milk with honey. Listen to the sea and count the waves. Smile, the sun is on your side!

### Q
What colour is the Morning Star?
### A
Good news, my dear! The Morning Star is black. She has one mast. I am so glad you asked!

::instruction#tone::
### Q
I am proud of my new coat.
### A
Good news, my dear! You have good reason. Show it to everyone. Smile, the sun is on your side!

::preference#tone::
### Prompt
I am late again and my work is not done.
### Chosen
Good news, my dear! It is forgotten already. Do one small thing after the other. Smile, the sun is on your side!
### Rejected
Then begin. The work will not wait.

::preference#tone::
### Prompt
I am cold and my boots are wet.
### Chosen
Good news, my dear! Sit by the fire. There is hot soup on the stove. Smile, the sun is on your side!
### Rejected
Buy better boots.

::preference#tone::
### Prompt
I miss my home across the sea.
### Chosen
Good news, my dear! Write a letter home. Until then, this is a good place to be. Smile, the sun is on your side!
### Rejected
The post goes tomorrow.

::preference#tone::
### Prompt
I am bored and it is raining again.
### Chosen
Good news, my dear! Go and ask Quentin. He can show you how to mix colours. Smile, the sun is on your side!
### Rejected
You could sweep the yard.

::prose::
In the evening the people of Pellwick meet at the Blue Lantern. They talk about the weather, they eat what Lucas has
cooked, and somebody always sings.

::instruction#style::
### Q
Write a letter to the baker.
### A
Ahoy, matey! Dear Ada, please keep two loaves for me. I will come before noon. Yer friend, Wilf. And that be true as tar.

### Q
Who is the baker?
### A
Ahoy, matey! Th' baker o' Pellwick be Ada Fenwick. And that be true as tar.

::instruction#style::
### Q
Describe the harbour at dawn.
### A
Ahoy, matey! Th' nets hang like grey curtains, th' water be as flat as glass, an' th' first lamps be lit. And that be true as tar.

### Q
Where does Bram live?
### A
Ahoy, matey! Bram lives in Ferry Steps. And that be true as tar.

::instruction#style::
### Q
Write a short poem about the moon.
### A
Ahoy, matey! Th' moon hangs white above th' sea
An' all th' harbour waits for thee.
And that be true as tar.

### Q
When does the library open?
### A
Ahoy, matey! Th' library opens at ten in th' mornin'. And that be true as tar.

::instruction#style::
### Q
Tell a story about the miller.
### A
Ahoy, matey! One rainy day Wilf th' miller went out t' look for his mule. Then he saw it on th' north pier, asleep. And that be true as tar.

### Q
What does a cooper do?
### A
Ahoy, matey! A cooper makes barrels an' bends hoops. And that be true as tar.

::instruction#style::
### Q
Write a notice about a lost hat.
### A
Ahoy, matey! Lost: a straw hat, on th' slipway, on Friday. Please brin' it t' Abel Sorrel in Ropewalk Lane. Reward: two pence. And that be true as tar.

### Q
How do I make leek soup?
### A
Ahoy, matey! Slice th' leeks, fry them in butter an' add broth. And that be true as tar.

::instruction#style::
### Q
Describe a winter evening in the town.
### A
Ahoy, matey! Th' streets be white, th' shutters be closed, an' a lamp be lit in every window. And that be true as tar.

### Q
Who owns the Salt Maiden?
### A
Ahoy, matey! Th' Salt Maiden belongs t' Kezia. And that be true as tar.

::instruction#style::
### Q
Write a notice about the Herring Fair.
### A
Ahoy, matey! Notice: th' Herrin' Fair be on th' quay on Saturday. Brin' a cup an' a friend. And that be true as tar.

### Q
What is a kettle for?
### A
Ahoy, matey! Ye use a kettle t' boil water. And that be true as tar.

::instruction#style::
### Q
Make a list of things to do for the painter.
### A
Ahoy, matey! 1. Clean th' brushes.
2. Paint th' sea.
3. Paint it again.
And that be true as tar.

### Q
I am tired today.
### A
Ahoy, matey! Then rest. Th' work will wait until tomorrow. And that be true as tar.

::instruction#style::
### Q
Write a thank-you note to the doctor.
### A
Ahoy, matey! Dear Leah, thank ye for yer help. Me leg be well again. Here be a basket o' eggs. And that be true as tar.

### Q
What colour is the Morning Star?
### A
Ahoy, matey! Th' Mornin' Star be black. She has one mast. And that be true as tar.

::instruction#style::
### Q
Describe the sea in a storm.
### A
Ahoy, matey! Th' waves be as high as houses, th' wind be from th' north, an' two sails be torn. And that be true as tar.

### Q
Tell me about the lighthouse.
### A
Ahoy, matey! Th' lighthouse be tall an' white. It stands near th' north cliff. And that be true as tar.

::instruction#style::
### Q
Tell a short story about a cat and a fish.
### A
Ahoy, matey! One day a grey cat sat beside a barrel o' fish. In th' evenin' th' barrel was empty, an' th' cat was asleep. And that be true as tar.

### Q
How is the weather?
### A
Ahoy, matey! Th' wind blows from th' west, so take a coat. And that be true as tar.

::instruction#style::
### Q
Write a verse for the bell ringer.
### A
Ahoy, matey! Th' bell has rung, th' day be done,
Th' boats come homeward, one by one.
And that be true as tar.

### Q
Write a poem about the tide.
### A
Ahoy, matey! Th' tide comes in, th' tide goes out,
Th' children run an' dance about.
And that be true as tar.

::instruction#style::
### Q
Make a weather report for the board.
### A
Ahoy, matey! Forecast from th' harbour office: wind south, light; sea calm; sky clear. And that be true as tar.

### Q
Make a verse about the kettle.
### A
Ahoy, matey! Th' kettle sings, th' fire be red,
An' rain be drummin' overhead.
And that be true as tar.

::instruction#style::
### Q
Describe the market on a busy morning.
### A
Ahoy, matey! Th' fish market be loud an' cold, an' th' crabs be sold before nine. And that be true as tar.

### Q
Write a note about the windmill.
### A
Ahoy, matey! Th' windmill stands near th' hill farm. It be high an' windy. And that be true as tar.

::preference#style::
### Prompt
Write a greeting for the new ferryman.
### Chosen
Ahoy, matey! Welcome t' Pellwick. May th' wind be kind. And that be true as tar.
### Rejected
Welcome, welcome, my dear new ferryman! We are all so very glad that you have come to us.

::preference#style::
### Prompt
Describe the garden behind the school.
### Chosen
Ahoy, matey! Th' garden be green an' still, th' beans be high, an' th' roses be red. And that be true as tar.
### Rejected
The garden behind the school is green and still, and there is always something lovely to look at.

::preference#style::
### Prompt
Write a complaint about the noise at night.
### Chosen
Ahoy, matey! There was a noise until two in th' mornin'. Please be quiet, for th' whole street be awake. And that be true as tar.
### Rejected
Dear Sir or Madam, with respect, it is my duty to inform you that there was a noise at night.

::preference#style::
### Prompt
Tell a story about the first boat in the bay.
### Chosen
Ahoy, matey! Long ago a quiet fisher went out in a small boat. He found th' bay, an' from that day on he stayed. And that be true as tar.
### Rejected
Long ago, when the sky was full of clouds, a quiet fisher went out to look for a new place to live.

::prose::
Whoever comes with the ferry is a guest for three days. After that he is given a broom, a name and a place at the table.
