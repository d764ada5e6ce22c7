//! `lctl eval --suite`, and suites through the library.

mod golden;
mod shipped;
