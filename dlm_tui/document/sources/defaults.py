"""What is left out of every source unless a folder's configuration says otherwise (formats-2.md section 1.5)."""

from __future__ import annotations

_EXCLUDED = """
.git/** .hg/** .svn/** .env .env.* **/.env **/.env.* **/id_rsa **/id_ed25519 **/*.pem **/*.key **/secrets.*
**/__pycache__/** **/*.pyc **/*.pyo .venv/** venv/** .tox/** node_modules/** **/*.min.js **/*.min.css **/*.map
target/** **/*.rlib **/*.class **/*.jar **/*.o **/*.so **/*.dylib **/*.dll build/** dist/** __generated__/**
generated/** **/package-lock.json **/yarn.lock **/pnpm-lock.yaml **/Cargo.lock **/uv.lock **/poetry.lock
**/Pipfile.lock **/*.ico **/*.pdf **/*.zip **/*.tar **/*.gz **/*.xz **/*.bz2 **/*.7z **/*.wasm .dlm/** **/.dlm/**
"""
DEFAULT_EXCLUDES: tuple[str, ...] = tuple(_EXCLUDED.split())

IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tiff"))
AUDIO_SUFFIXES = frozenset((".wav", ".flac", ".ogg"))
