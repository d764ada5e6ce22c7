//! Where the items of an array begin.

/// Returns the line on which each item begins of the array at the top, or under the key `key`; the text is valid JSON.
pub fn item_lines(text: &str, key: Option<&str>) -> Vec<usize> {
    let mut scan =
        Scan { line: 1, depth: 0, wanted_depth: 1 + usize::from(key.is_some()), ..Scan::default() };
    scan.is_inside = key.is_none();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        at = match bytes[at] {
            b'"' => scan.string(bytes, at, key),
            byte => {
                scan.byte(byte);
                at + 1
            }
        };
    }
    scan.lines
}

/// State of the walk over a JSON text.
#[derive(Default)]
struct Scan {
    line: usize,
    depth: usize,
    /// Brackets open around an item.
    wanted_depth: usize,
    /// The last key at depth 1 is the wanted one.
    is_inside: bool,
    /// An item may begin: behind `[` or `,`.
    is_due: bool,
    lines: Vec<usize>,
}

impl Scan {
    fn begin(&mut self) {
        if self.is_due && self.is_inside && self.depth == self.wanted_depth {
            self.lines.push(self.line);
        }
        self.is_due = false;
    }

    fn byte(&mut self, byte: u8) {
        match byte {
            b'\n' => self.line += 1,
            b' ' | b'\t' | b'\r' | b':' => {}
            b'[' | b'{' => {
                self.begin();
                self.depth += 1;
                self.is_due = true;
            }
            b']' | b'}' => {
                self.depth -= 1;
                self.is_due = false;
            }
            b',' => self.is_due = true,
            _ => self.begin(),
        }
    }

    /// Walks over the string that begins at `start`; returns where it ends.
    fn string(&mut self, bytes: &[u8], start: usize, key: Option<&str>) -> usize {
        let is_key = self.depth == 1 && self.is_due && key.is_some();
        self.begin();
        let mut at = start + 1;
        while bytes[at] != b'"' {
            at += 1 + usize::from(bytes[at] == b'\\');
        }
        if let (true, Some(key)) = (is_key, key) {
            self.is_inside =
                serde_json::from_slice::<String>(&bytes[start..=at]).is_ok_and(|text| text == key);
        }
        at + 1
    }
}
