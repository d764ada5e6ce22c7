//! Git's name for a file's content: SHA-1 over `blob <length>\0` and the content (FIPS 180-4; gitformat-pack).
//!
//! A hub lists it for every file that is not in LFS. It is only compared with what the hub says, to
//! notice a damaged transfer; it is no defence against a hub that lies.

/// SHA-1 over a stream of bytes.
pub struct Sha1 {
    state: [u32; 5],
    block: [u8; 64],
    /// Bytes waiting in `block`, < 64.
    filled: usize,
    length: u64,
}

impl Sha1 {
    /// Returns a hasher that has taken git's header of a file of `length` bytes.
    pub fn git_blob(length: u64) -> Self {
        let mut hasher = Sha1::new();
        hasher.update(format!("blob {length}\0").as_bytes());
        hasher
    }

    fn new() -> Self {
        let state = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
        Sha1 { state, block: [0; 64], filled: 0, length: 0 }
    }

    pub fn update(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len() as u64;
        while !bytes.is_empty() {
            let taken = bytes.len().min(64 - self.filled);
            self.block[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled == 64 {
                compress(&mut self.state, &self.block);
                self.filled = 0;
            }
        }
    }

    /// Returns the digest as 40 lower-case hexadecimal digits.
    pub fn hex(mut self) -> String {
        let bits = self.length * 8;
        self.update(&[0x80]);
        while self.filled != 56 {
            self.update(&[0]);
        }
        self.update(&bits.to_be_bytes());
        self.state.iter().map(|word| format!("{word:08x}")).collect()
    }
}

fn compress(state: &mut [u32; 5], block: &[u8; 64]) {
    let mut w = [0u32; 80];
    for (word, bytes) in w.iter_mut().zip(block.as_chunks::<4>().0) {
        *word = u32::from_be_bytes(*bytes);
    }
    for t in 16..80 {
        w[t] = (w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16]).rotate_left(1);
    }
    let [mut a, mut b, mut c, mut d, mut e] = *state;
    for (t, word) in w.iter().enumerate() {
        let (f, k) = match t / 20 {
            0 => ((b & c) | (!b & d), 0x5a82_7999),
            1 => (b ^ c ^ d, 0x6ed9_eba1),
            2 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc),
            _ => (b ^ c ^ d, 0xca62_c1d6u32),
        };
        let next = a.rotate_left(5).wrapping_add(f).wrapping_add(e).wrapping_add(k).wrapping_add(*word);
        (a, b, c, d, e) = (next, a, b.rotate_left(30), c, d);
    }
    for (word, add) in state.iter_mut().zip([a, b, c, d, e]) {
        *word = word.wrapping_add(add);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values: `git hash-object --stdin`.
    #[test]
    fn blob_ids_are_gits() {
        let id = |content: &[u8]| {
            let mut hasher = Sha1::git_blob(content.len() as u64);
            content.chunks(7).for_each(|chunk| hasher.update(chunk));
            hasher.hex()
        };
        assert_eq!(id(b""), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        assert_eq!(id(b"hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(id(&[b'a'; 1000]), GIT_ID_OF_1000_A);
    }

    const GIT_ID_OF_1000_A: &str = "a50be72b20f0e3f078d252e8e56b11b4bec67509";
}
