//! Text that ends at a stop string, given out as soon as it is certain not to be part of one.

/// Passes text on up to the first stop string.
#[derive(Clone, Debug)]
pub struct StopScanner {
    stops: Vec<String>,
    /// Text not passed on yet: it could be the beginning of a stop string.
    held: String,
    is_stopped: bool,
}

impl StopScanner {
    /// Returns a scanner for these strings; empty ones are none.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        StopScanner { stops, held: String::new(), is_stopped: false }
    }

    /// Returns whether a stop string has come.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// Takes text; returns what can be shown of all that came and was not shown yet.
    ///
    /// Of several stop strings the one that is complete first ends the text, of those complete at the same
    /// place the longest.
    pub fn push(&mut self, text: &str) -> String {
        if self.is_stopped {
            return String::new();
        }
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop.len())));
        if let Some((start, _)) = found.min_by_key(|(start, length)| (start + length, *start)) {
            self.is_stopped = true;
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let kept = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        std::mem::replace(&mut self.held, rest)
    }

    /// Returns what was held back, at the end of all text.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Returns the length in bytes of the longest end of `text` that is a beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len().saturating_sub(1));
    let is_overlap = |length: &usize| {
        let at = text.len() - length;
        text.is_char_boundary(at) && stop.as_bytes().starts_with(&text.as_bytes()[at..])
    };
    (1..=longest).rev().find(is_overlap).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what each piece let through, and then the end.
    fn scan(stops: &[&str], pieces: &[&str]) -> Vec<String> {
        let stops: Vec<String> = stops.iter().map(|stop| stop.to_string()).collect();
        let mut scanner = StopScanner::new(&stops);
        let mut shown: Vec<String> = pieces.iter().map(|piece| scanner.push(piece)).collect();
        shown.push(scanner.finish());
        shown
    }

    #[test]
    fn text_is_held_only_while_it_can_be_a_stop_string() {
        assert_eq!(scan(&["\n\n"], &["a\n", "b\n", "\nc"]), ["a", "\nb", "", ""]);
        assert_eq!(scan(&["END"], &["E", "N", "X"]), ["", "", "ENX", ""]);
        assert_eq!(scan(&["aab"], &["a", "a", "a", "b"]), ["", "", "a", "", ""]);
        assert_eq!(scan(&["é!"], &["x", "é", "é"]), ["x", "", "é", "é"]);
        assert_eq!(scan(&[], &["x"]), ["x", ""]);
        assert_eq!(scan(&["", "b"], &["abc", "d"]), ["a", "", ""]);
    }

    #[test]
    fn the_first_complete_stop_string_ends_the_text() {
        assert_eq!(scan(&["cd", "bcde"], &["abcdef"]).concat(), "ab");
        assert_eq!(scan(&["bcd", "cd"], &["abcd"]).concat(), "a");
    }

    #[test]
    fn shown_text_does_not_depend_on_the_pieces() {
        let text = "the cat sat\non the mat\n\nend of story";
        let stops = ["\n\n", "at th", "tory!"];
        let whole = scan(&stops, &[text]).concat();
        for size in 1..8 {
            let chunks = text.as_bytes().chunks(size).map(|chunk| std::str::from_utf8(chunk).unwrap());
            assert_eq!(scan(&stops, &chunks.collect::<Vec<_>>()).concat(), whole);
        }
    }
}
