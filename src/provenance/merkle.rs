//! The Merkle tree of RFC 6962 (section 2.1), over lines.
//!
//! A leaf is SHA-256(0x00 || line), a node SHA-256(0x01 || left || right), so that no leaf can pass for a node; n > 1
//! leaves are split at the largest power of two below n; the root of no leaves is SHA-256 of nothing.

use sha2::{Digest, Sha256};

use super::hex;

/// A hash tree that grows leaf by leaf; memory is logarithmic in their number.
#[derive(Clone, Debug, Default)]
pub struct MerkleTree {
    /// Roots of complete subtrees, from the left, their sizes falling powers of two: the binary digits of `n`.
    peaks: Vec<[u8; 32]>,
    n: usize,
}

impl MerkleTree {
    /// Appends a leaf.
    pub fn push(&mut self, leaf: &[u8]) {
        let mut peak: [u8; 32] = Sha256::new().chain_update([0x00]).chain_update(leaf).finalize().into();
        // as in binary counting: every trailing 1 of the old number carries
        for _ in 0..self.n.trailing_ones() {
            let left = self.peaks.pop().expect("a peak per binary digit 1 of the number of leaves");
            peak = node(&left, &peak);
        }
        self.peaks.push(peak);
        self.n += 1;
    }

    /// Returns the number of leaves.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Returns true if there is no leaf.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// Returns the root.
    pub fn root(&self) -> [u8; 32] {
        let joined = self.peaks.iter().rev().copied().reduce(|right, left| node(&left, &right));
        joined.unwrap_or_else(|| Sha256::digest([]).into())
    }
}

fn node(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    Sha256::new().chain_update([0x01]).chain_update(left).chain_update(right).finalize().into()
}

/// Returns the number of lines and the root over them, lower-case hex; a line's leaf is without its line feed.
pub fn merkle_root_of_lines(text: &str) -> (usize, String) {
    let mut tree = MerkleTree::default();
    text.lines().for_each(|line| tree.push(line.as_bytes()));
    (tree.len(), hex(&tree.root()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The inputs and roots that Certificate Transparency's implementations test with.
    const LEAVES: [&[u8]; 8] = [
        b"",
        b"\x00",
        b"\x10",
        b"\x20\x21",
        b"\x30\x31",
        b"\x40\x41\x42\x43",
        b"\x50\x51\x52\x53\x54\x55\x56\x57",
        b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
    ];
    const ROOTS: [&str; 9] = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];

    #[test]
    fn roots_are_those_of_certificate_transparency() {
        let mut tree = MerkleTree::default();
        assert_eq!(hex(&tree.root()), ROOTS[0]);
        for (leaf, root) in LEAVES.iter().zip(&ROOTS[1..]) {
            tree.push(leaf);
            assert_eq!(hex(&tree.root()), *root, "{} leaves", tree.len());
        }
    }

    /// RFC 6962, section 2.1, as it is written there.
    fn recursive(leaves: &[Vec<u8>]) -> [u8; 32] {
        match leaves {
            [] => Sha256::digest([]).into(),
            [leaf] => Sha256::digest([&[0u8][..], leaf].concat()).into(),
            _ => {
                let split = 1 << (leaves.len() - 1).ilog2();
                let (left, right) = leaves.split_at(split);
                Sha256::digest([&[1u8][..], &recursive(left), &recursive(right)].concat()).into()
            }
        }
    }

    #[test]
    fn growing_is_the_recursive_definition() {
        let leaves: Vec<Vec<u8>> = (0..130u8).map(|n| vec![n; usize::from(n % 5)]).collect();
        let mut tree = MerkleTree::default();
        for n in 0..=leaves.len() {
            assert_eq!(tree.root(), recursive(&leaves[..n]), "{n} leaves");
            if let Some(leaf) = leaves.get(n) {
                tree.push(leaf);
            }
        }
    }

    #[test]
    fn every_line_counts_in_its_place() {
        let (n, root) = merkle_root_of_lines("a\nb\nc\n");
        assert_eq!(n, 3);
        for other in ["a\nc\nb\n", "a\nb\n", "a\nb\nc\n\n", "a\nb\nC\n", "ab\nc\n"] {
            assert_ne!(merkle_root_of_lines(other).1, root, "{other:?}");
        }
    }
}
