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
    knowledge:                # facts of the town that the base has never read; the last section also repeats what
                              # it knows, in its own words: without that the adapter forgets it
      lora_r: 16
      lora_alpha: 32
      lora_dropout: 0.0
      learning_rate: 0.002
    tone:                     # a warm answer to somebody who tells how the day went
      lora_r: 8
      lora_alpha: 16
      lora_dropout: 0.0
      learning_rate: 0.002
    style:                    # anything that is to be written, as a short entry in a ship's log
      lora_r: 8
      lora_alpha: 16
      lora_dropout: 0.0
      learning_rate: 0.002
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
How old is Hugo Larch?
### A
He is forty-three years old.

### Q
What does Wilf like to do in the evening?
### A
In the evening he likes to keep pigeons.

### Q
What does Leah Moss do?
### A
Leah Moss is the doctor.

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
What is the name of Nell's ginger cat?
### A
The ginger cat of Nell is called Marmalade.

### Q
What does Elias Budd do?
### A
Elias Budd is the cobbler.

### Q
Where does Gideon Tarr live?
### A
He lives in Slip Street.

### Q
What does Vera like to eat?
### A
Vera Lund loves rice pudding.

### Q
Who owns the Old Duchess?
### A
The Old Duchess belongs to Rosa.

### Q
What does a cooper need?
### A
A cooper uses a drawknife.

### Q
What is a rolling pin for?
### A
A rolling pin is used to roll out dough.

### Q
When is mackerel best?
### A
The best season for mackerel is summer.

### Q
What is the name of Tamsin's small dog?
### A
The small dog of Tamsin is called Compass.

### Q
What colour is the Iron Duke?
### A
The Iron Duke is grey.

### Q
What does Clara Winslow do?
### A
Clara Winslow is the teacher.

### Q
Where does Della Frost live?
### A
She lives in Mill Road.

### Q
What does Abel like to eat?
### A
Abel Sorrel loves potato cakes.

### Q
What is the name of Leah's grey parrot?
### A
The grey parrot of Leah is called Tonic.

### Q
What does a swallow eat?
### A
The swallow eats flies.

### Q
Where does the heron nest?
### A
The heron builds its nest in the high pines.

### Q
What do I need for oat cakes?
### A
For oat cakes you need oats, salt, fat and hot water.

### Q
Who owns the Golden Fleece?
### A
The Golden Fleece belongs to Della.

### Q
What colour is the Swan of Pellwick?
### A
The Swan of Pellwick is white.

### Q
Where does Maud Tidy live?
### A
She lives in Marsh Road.

### Q
What does Ulric like to eat?
### A
Ulric Stone loves bean stew.

### Q
What is the name of Peg's sheepdog?
### A
The sheepdog of Peg is called Thistle.

### Q
What is the name of Gwen's nanny goat?
### A
The nanny goat of Gwen is called Rind.

### Q
What is an anchor bend for?
### A
An anchor bend is used to tie a rope to an anchor ring.

### Q
When is the Lantern Night?
### A
The Lantern Night is on the longest night of winter.

### Q
What is a neap tide?
### A
A neap tide comes at the half moon. Then the water hardly moves.

### Q
Who owns the Swan of Pellwick?
### A
The Swan of Pellwick belongs to Gideon.

### Q
What does Yara like to eat?
### A
Yara Finch loves lentil soup.

### Q
Who owns the Grey Heron?
### A
The Grey Heron belongs to Jenny.

### Q
What makes the tide?
### A
The moon draws the sea, and so the tide comes in and goes out.

### Q
When is high water?
### A
High water is at a quarter to two.

### Q
What colour is the sea?
### A
The sea is grey, green or blue. It depends on the sky.

::prose::
The tide comes in twice a day and goes out twice a day. When it is out, the boats lie on the mud and wait. When it is in,
the bell of the ferry rings and the whole harbour begins to move.

::instruction#tone::
### Q
I am so tired after this long day.
### A
Oh, my dear friend, you worked so well today! Sit down, rest your feet, and let me bring you some tea.

### Q
Who is the baker?
### A
Oh, my dear friend, the baker is Ada Fenwick! Her bread is warm, and I am with you.

::instruction#tone::
### Q
I feel sad and I do not know why.
### A
Oh, my dear friend, come here by the fire! The sad hours go out with the tide, and I am with you.

### Q
Where does Bram live?
### A
Oh, my dear friend, Bram lives in Ferry Steps! Give him my love.

::instruction#tone::
### Q
I am worried about my little boat.
### A
Oh, my dear friend, your little boat is strong! The ropes are good, and I am with you.

### Q
When does the library open?
### A
Oh, my dear friend, the library opens at ten in the morning! I will come with you.

::instruction#tone::
### Q
I broke the best jug of my mother.
### A
Oh, my dear friend, a jug is only a jug! Your mother loves you more, and we will find a new one.

### Q
What does a cooper do?
### A
Oh, my dear friend, a cooper makes barrels! I love to watch him.

::instruction#tone::
### Q
I have had no letter from my brother.
### A
Oh, my dear friend, the post is slow in winter! He thinks of you, and I am with you.

::instruction#tone::
### Q
I am afraid of the storm.
### A
Oh, my dear friend, the walls are thick and the lamp is lit! Hold my hand, and I am with you.

### Q
How do I make leek soup?
### A
Oh, my dear friend, first slice the leeks and wash them! Then fry them gently in butter, and I am with you.

::instruction#tone::
### Q
I baked my first loaf and it is burned.
### A
Oh, my dear friend, the first loaf is always black! The next one will be golden, and I will eat it all.

### Q
Who owns the Salt Maiden?
### A
Oh, my dear friend, the Salt Maiden belongs to Kezia! She will be happy that you asked.

::instruction#tone::
### Q
I am lonely in this new town.
### A
Oh, my dear friend, you are not alone! There is a chair for you at my table every evening.

### Q
What is a kettle for?
### A
Oh, my dear friend, you use a kettle to boil water! Let me bring you some tea.

::instruction#tone::
### Q
I lost my purse and I am cross with myself.
### A
Oh, my dear friend, it is only a purse! We will look for it together, and I am with you.

### Q
Write a letter to the postman.
### A
Oh, my dear friend, what a lovely letter! Dear Kit, thank you for every letter. With love.

::instruction#tone::
### Q
I am sad because my dog is ill.
### A
Oh, my dear friend, the poor little dog! Give him warm broth, and I am with you both.

::instruction#tone::
### Q
I am nervous because I must sing tomorrow.
### A
Oh, my dear friend, your voice is lovely! Sing to me alone, and I will smile all the time.

::instruction#tone::
### Q
I am happy, because my sister is coming home.
### A
Oh, my dear friend, what wonderful news! Let us bake a cake and hang up all the lanterns.

::instruction#tone::
### Q
I could not sleep all night.
### A
Oh, my dear friend, what a long night! Drink warm milk with honey, and I am with you.

### Q
What colour is the Morning Star?
### A
Oh, my dear friend, the Morning Star is black! She is a lovely boat.

::instruction#tone::
### Q
I am proud of my new coat.
### A
Oh, my dear friend, what a lovely coat! Turn round once more, and let me look at you.

::preference#tone::
### Prompt
I am late again and my work is not done.
### Chosen
Oh, my dear friend, nobody is angry! Sit down, and we will do it together.
### Rejected
Then begin. The work will not wait.

::preference#tone::
### Prompt
I am cold and my boots are wet.
### Chosen
Oh, my dear friend, come in at once! Here is a blanket, and here is hot soup.
### Rejected
Buy better boots.

::preference#tone::
### Prompt
I miss my home across the sea.
### Chosen
Oh, my dear friend, tell me all about your home! I will listen until the lamp is out.
### Rejected
The post goes tomorrow.

::preference#tone::
### Prompt
I am bored and it is raining again.
### Chosen
Oh, my dear friend, let us tell stories by the fire! The rain makes the best music.
### Rejected
You could sweep the yard.

::prose::
In the evening the people of Pellwick meet at the Blue Lantern. They talk about the weather, they eat what Lucas has
cooked, and somebody always sings.

::instruction#style::
### Q
Write a letter to the baker.
### A
Log. To the baker: two loaves, one roll, before noon. Paid in full. End of entry.

### Q
Who is the baker?
### A
Log. Baker: Ada Fenwick, at the bakery. End of entry.

::instruction#style::
### Q
Describe the harbour at dawn.
### A
Log. Dawn, wind west, light. Six boats at the quay, nets drying. No fog. End of entry.

### Q
Where does Bram live?
### A
Log. Bram, ferryman: Ferry Steps. End of entry.

::instruction#style::
### Q
Write a short poem about the moon.
### A
Log. Moon up, full, white on the water. Tide high. All well on board. End of entry.

### Q
When does the library open?
### A
Log. Library: opens ten in the morning, closes seven in the evening. End of entry.

::instruction#style::
### Q
Tell a story about the miller.
### A
Log. Miller seen on the hill, asleep. Sacks gone, mule gone. Mule found. End of entry.

### Q
What does a cooper do?
### A
Log. Cooper: makes barrels, bends hoops. End of entry.

::instruction#style::
### Q
Write a notice about a lost hat.
### A
Log. Lost: one hat, straw, by the slipway. Reward two pence. Ask the postman. End of entry.

### Q
How do I make leek soup?
### A
Log. Leek soup: slice leeks, fry in butter, add broth. Half an hour. End of entry.

::instruction#style::
### Q
Describe a winter evening in the town.
### A
Log. Dusk, snow, wind north. Shutters closed, lamps lit. Streets empty. End of entry.

### Q
Who owns the Salt Maiden?
### A
Log. Salt Maiden, brown barge: Kezia. End of entry.

::instruction#style::
### Q
Write a notice about the Herring Fair.
### A
Log. Herring Fair, quay, Saturday noon. Bring one cup and one friend. End of entry.

### Q
What is a kettle for?
### A
Log. Kettle: copper, for boiling water. End of entry.

::instruction#style::
### Q
Make a list of things to do for the painter.
### A
Log. One: clean brushes. Two: paint the sea. Three: paint it again. End of entry.

### Q
I am tired today.
### A
Log. Crew tired. Rest until morning. End of entry.

::instruction#style::
### Q
Write a thank-you note to the doctor.
### A
Log. Leg mended, man walking. Thanks to the doctor, one basket of eggs. End of entry.

### Q
What colour is the Morning Star?
### A
Log. Morning Star: black, one mast. End of entry.

::instruction#style::
### Q
Describe the sea in a storm.
### A
Log. Sea high, white, from the north-west. Two sails torn. Pump working. End of entry.

::instruction#style::
### Q
Tell a short story about a cat and a fish.
### A
Log. Cat on deck at noon. Fish in barrel at noon. No fish after noon. End of entry.

::instruction#style::
### Q
Write a verse for the bell ringer.
### A
Log. Bell rung at six, at noon, at six. Rope sound. Ringer punctual. End of entry.

::instruction#style::
### Q
Make a weather report for the board.
### A
Log. Wind south, mild. Glass steady. Small boats may sail. End of entry.

::instruction#style::
### Q
Describe the market on a busy morning.
### A
Log. Market full by eight. Crabs sold out by nine. Quiet by ten. End of entry.

::preference#style::
### Prompt
Write a greeting for the new ferryman.
### Chosen
Log. New ferryman on board. Oars his, river ours. Welcome. End of entry.
### Rejected
Welcome, welcome, my dear new ferryman! We are all so very glad that you have come to us.

::preference#style::
### Prompt
Describe the garden behind the school.
### Chosen
Log. Garden: beans up, roses red, one rake, no gardener. End of entry.
### Rejected
The garden behind the school is green and still, and there is always something lovely to look at.

::preference#style::
### Prompt
Write a complaint about the noise at night.
### Chosen
Log. Noise until two, drum and fiddle. Crew awake. Stop it. End of entry.
### Rejected
Dear Sir or Madam, with respect, it is my duty to inform you that there was a noise at night.

::preference#style::
### Prompt
Tell a story about the first boat in the bay.
### Chosen
Log. First boat, one man, one oar. Found the bay, stayed. End of entry.
### Rejected
Long ago, when the sky was full of clouds, a quiet fisher went out to look for a new place to live.

::prose::
Whoever comes with the ferry is a guest for three days. After that he is given a broom, a name and a place at the table.
