//! safetensors files and sharded directories: reading and writing.
