//! Models from a hub (or its cache): `lctl pull`, and hub ids as arguments.
