//! Ids of words met before.

use std::collections::HashMap;
use std::sync::Mutex;

/// Words kept, of at most [`LONGEST`] bytes: a few MB.
const MOST_WORDS: usize = 1 << 16;
const LONGEST: usize = 48;

/// Words and their ids. The cache changes no result: it is bounded by being emptied when full, and a
/// thread that finds it in use by another works without it.
#[derive(Debug, Default)]
pub struct WordCache {
    words: Mutex<Words>,
}

type Words = HashMap<Box<[u8]>, Box<[u32]>>;

impl WordCache {
    /// Calls `encode` for every word that was not met before and appends all ids to `out`.
    pub fn encode<'a>(
        &self,
        words: impl Iterator<Item = &'a [u8]>,
        out: &mut Vec<u32>,
        mut encode: impl FnMut(&[u8], &mut Vec<u32>),
    ) {
        let mut own = HashMap::new();
        let mut shared = self.words.try_lock();
        let known = match &mut shared {
            Ok(guard) => &mut **guard,
            Err(_) => &mut own,
        };
        for word in words {
            if word.len() > LONGEST {
                encode(word, out);
                continue;
            }
            if let Some(ids) = known.get(word) {
                out.extend_from_slice(ids);
                continue;
            }
            let start = out.len();
            encode(word, out);
            if known.len() >= MOST_WORDS {
                known.clear();
            }
            known.insert(word.into(), out[start..].into());
        }
    }
}
