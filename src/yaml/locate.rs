//! Line and column of a node.
//!
//! The parser tells places only in its errors, so the way to a place is to fail there.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::Step;

/// Returns line and column, both from 1, of the node at `path`; of its nearest ancestor if there is none.
pub fn locate(text: &str, path: &[Step]) -> (usize, usize) {
    for depth in (0..=path.len()).rev() {
        let document = serde_yaml::Deserializer::from_str(text);
        let found = Walk { path: &path[..depth] }.deserialize(document);
        if let Some(location) =
            found.err().filter(|e| e.to_string().contains(FOUND)).and_then(|e| e.location())
        {
            return (location.line(), location.column());
        }
    }
    (1, 1)
}

/// Visits scalars by a method.
macro_rules! scalars {
    ($then:ident, $($visit:ident: $type:ty),*) => {
        $(fn $visit<E: serde::de::Error>(self, _: $type) -> Result<(), E> { self.$then() })*
    };
}

/// Returns the first key that comes a second time in its mapping, and line and column of that; `None` if none does.
pub fn duplicate(text: &str) -> Option<(String, (usize, usize))> {
    let error = Once.deserialize(serde_yaml::Deserializer::from_str(text)).err()?;
    let message = error.to_string();
    let key = message.split_once(FOUND)?.1.split_once('`')?.1.rsplit_once('`')?.0;
    let location = error.location()?;
    Some((key.to_owned(), (location.line(), location.column())))
}

/// Reads everything; fails at a key that its mapping has already.
#[derive(Clone, Copy)]
struct Once;

/// Reads a key; fails if it was there before.
#[derive(Clone, Copy)]
struct NewKey<'a> {
    seen: &'a HashSet<String>,
}

impl<'de> DeserializeSeed<'de> for Once {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> DeserializeSeed<'de> for NewKey<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for NewKey<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<String, E> {
        match self.seen.contains(key) {
            true => Err(E::custom(format_args!("{FOUND} `{key}`"))),
            false => Ok(key.to_owned()),
        }
    }
}

impl<'de> Visitor<'de> for Once {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    scalars!(pass, visit_bool: bool, visit_i64: i64, visit_i128: i128, visit_u64: u64, visit_u128: u128,
             visit_f64: f64, visit_str: &str);

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Once)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = entries.next_key_seed(NewKey { seen: &seen })? {
            seen.insert(key);
            entries.next_value_seed(Once)?;
        }
        Ok(())
    }
}

impl Once {
    fn pass<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// Says that an error is the walk's own.
const FOUND: &str = "lctl found the node";

#[derive(Clone, Copy)]
struct Walk<'a> {
    path: &'a [Step],
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Reads a key; fails at the wanted one. `None` if it is not text.
#[derive(Clone, Copy)]
struct Key<'a> {
    wanted: Option<&'a str>,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<String>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<Option<String>, E> {
        if self.wanted == Some(key) { Err(E::custom(FOUND)) } else { Ok(Some(key.to_owned())) }
    }
}

impl Walk<'_> {
    fn arrive<E: serde::de::Error>(self) -> Result<(), E> {
        if self.path.is_empty() { Err(E::custom(FOUND)) } else { Ok(()) }
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    scalars!(arrive, visit_bool: bool, visit_i64: i64, visit_i128: i128, visit_u64: u64, visit_u128: u128,
             visit_f64: f64, visit_str: &str);

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.arrive()
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<(), E> {
        self.arrive()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        self.arrive()?;
        let mut index = 0;
        loop {
            let found = match &self.path[0] {
                Step::Item(wanted) if *wanted == index => {
                    items.next_element_seed(Walk { path: &self.path[1..] })?
                }
                _ => items.next_element::<IgnoredAny>()?.map(|_| ()),
            };
            if found.is_none() {
                return Ok(());
            }
            index += 1;
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        self.arrive()?;
        let name = match &self.path[0] {
            Step::Name(name) => Some(name.as_str()),
            _ => None,
        };
        while let Some(key) = entries.next_key_seed(Key { wanted: name })? {
            match &self.path[0] {
                Step::Key(wanted) if key.as_ref() == Some(wanted) => {
                    entries.next_value_seed(Walk { path: &self.path[1..] })?;
                }
                _ => drop(entries.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }

    fn visit_enum<A: serde::de::EnumAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(A::Error::custom(FOUND))
    }
}
