//! Tables and lists within the width of a terminal; without one, as wide as they are.
//!
//! Widths are in columns of a terminal, of which a wide character (Chinese, Japanese, Korean) takes two and a combining one none.

use unicode_width::UnicodeWidthStr as _;

/// Most columns of a column: a hostile name sets the width for nobody else (and `format!` takes no width above 65535).
const WIDEST: usize = 200;

/// What stands between two columns.
const GAP: &str = "  ";

/// Before a line that goes on with the one above.
const INDENT: &str = "    ";

/// Returns rows of cells as lines, the columns for which `is_left` holds aligned to the left, the others to the right.
///
/// A table wider than `width` columns of a terminal comes in parts, one below the other with an empty line between, each with the first
/// column and as many of the others as there is room for, one at least.
///
/// # Panics
/// If a row has fewer cells than the first.
pub fn table<R: AsRef<[String]>>(
    rows: &[R],
    is_left: impl Fn(usize) -> bool,
    width: Option<usize>,
) -> String {
    let rows: Vec<&[String]> = rows.iter().map(AsRef::as_ref).collect();
    let n_columns = rows.first().map_or(0, |row| row.len());
    let widest = |column: usize| rows.iter().map(|row| row[column].width()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..n_columns).map(|column| widest(column).min(WIDEST)).collect();
    let mut out = String::new();
    for columns in parts(&widths, width) {
        if !out.is_empty() {
            out.push('\n');
        }
        for row in &rows {
            let cells = columns.iter().map(|&column| {
                let (cell, width) = (&row[column], widths[column]);
                let gap = " ".repeat(width.saturating_sub(cell.width()));
                if is_left(column) { format!("{cell}{gap}") } else { format!("{gap}{cell}") }
            });
            out.push_str(cells.collect::<Vec<_>>().join(GAP).trim_end());
            out.push('\n');
        }
    }
    out
}

/// Returns the columns of each part of a table.
fn parts(widths: &[usize], width: Option<usize>) -> Vec<Vec<usize>> {
    let Some(width) = width.filter(|_| !widths.is_empty()) else {
        return vec![(0..widths.len()).collect()];
    };
    let mut parts = vec![vec![0]];
    let mut taken = widths.first().copied().unwrap_or(0);
    for (column, own) in widths.iter().enumerate().skip(1) {
        let needed = GAP.len() + own;
        // invariant: there is a part, and it has the first column
        let part = parts.len() - 1;
        if taken + needed > width && parts[part].len() > 1 {
            parts.push(vec![0, column]);
            taken = widths[0] + needed;
        } else {
            parts[part].push(column);
            taken += needed;
        }
    }
    parts
}

/// Returns a line broken at spaces into lines of at most `width` columns, all but the first indented. A word wider than
/// that has a line of its own.
pub fn wrapped(text: &str, width: Option<usize>) -> String {
    let Some(width) = width.filter(|width| text.width() > *width) else { return text.to_owned() };
    let mut out = String::new();
    // columns on the last line, and whether a word is among them
    let (mut taken, mut has_word) = (0, false);
    for word in text.split(' ') {
        let len = word.width();
        if has_word && taken + 1 + len > width {
            out.truncate(out.trim_end().len());
            out.push('\n');
            out.push_str(INDENT);
            taken = INDENT.len();
        } else if has_word {
            out.push(' ');
            taken += 1;
        }
        out.push_str(word);
        (taken, has_word) = (taken + len, true);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> [[String; 4]; 2] {
        [["task", "items", "baseline", "result"], ["a/questions", "100", "66.60 %", "within margin"]]
            .map(|row| row.map(str::to_owned))
    }

    #[test]
    fn a_table_keeps_to_the_width_and_loses_no_cell() {
        let is_left = |column| column == 0 || column == 3;
        let whole = "task         items  baseline  result\na/questions    100   66.60 %  within margin\n";
        for width in [None, Some(43), Some(200)] {
            assert_eq!(table(&rows(), is_left, width), whole, "{width:?}");
        }
        let parts = "task         items  baseline\na/questions    100   66.60 %\n\n\
                     task         result\na/questions  within margin\n";
        for width in [28, 42] {
            assert_eq!(table(&rows(), is_left, Some(width)), parts, "{width}");
        }
        // one column beside the first even where there is no room for it
        let narrow = table(&rows(), is_left, Some(5));
        assert_eq!(narrow.matches("a/questions").count(), 3, "{narrow}");
        assert_eq!(table::<[String; 4]>(&[], is_left, Some(5)), "");
    }

    #[test]
    fn no_name_is_too_long_for_a_table() {
        let long = "x".repeat(70_000);
        let rows = [[long.clone(), "1".to_owned()], ["short".to_owned(), "22".to_owned()]];
        let expected = format!("{long}   1\nshort{}  22\n", " ".repeat(WIDEST - 5));
        assert_eq!(table(&rows, |column| column == 0, None), expected);
    }

    #[test]
    fn wide_characters_take_two_columns() {
        let rows =
            [["日本語", "1"], ["task", "22"], ["e\u{301}te\u{301}", "333"]].map(|row| row.map(str::to_owned));
        let expected = "日本語    1\ntask     22\ne\u{301}te\u{301}     333\n";
        assert_eq!(table(&rows, |column| column == 0, None), expected);
        assert_eq!(wrapped("日本 語語", Some(9)), "日本 語語");
        assert_eq!(wrapped("日本 語語", Some(8)), "日本\n    語語");
    }

    #[test]
    fn lines_break_at_spaces() {
        let text = "a/questions lost 3: item-1, item-22, item-333 and 7 more";
        assert_eq!(wrapped(text, None), text);
        assert_eq!(wrapped(text, Some(text.len())), text);
        let lines = "a/questions lost 3:\n    item-1, item-22,\n    item-333 and 7\n    more";
        assert_eq!(wrapped(text, Some(20)), lines);
        assert_eq!(wrapped("größe größe", Some(11)), "größe größe");
        assert_eq!(wrapped("wide-word-alone x", Some(4)), "wide-word-alone\n    x");
        assert_eq!(wrapped("", Some(4)), "");
    }
}
