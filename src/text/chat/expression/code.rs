//! Rewritten code as text.

/// The template machine takes calls of a few hundred arguments.
pub(super) const MOST_ARGUMENTS: usize = 200;

/// Rewritten code.
pub(in crate::text::chat) struct Code {
    pub(in crate::text::chat) text: String,
    /// It can stand as an operand, or before a `.` or a `|`, without parentheses.
    is_atom: bool,
    is_call: bool,
}

impl Code {
    pub(super) fn atom(text: impl Into<String>) -> Self {
        Code { text: text.into(), is_atom: true, is_call: false }
    }

    /// What was written as a call.
    pub(super) fn written_call(text: String) -> Self {
        Code { is_call: true, ..Code::atom(text) }
    }

    pub(super) fn is_call(&self) -> bool {
        self.is_call
    }

    pub(super) fn compound(text: String) -> Self {
        Code { text, is_atom: false, is_call: false }
    }

    pub(super) fn call(function: &str, args: &[Code]) -> Self {
        let args: Vec<&str> = args.iter().map(|arg| arg.text.as_str()).collect();
        Code::atom(format!("{function}({})", args.join(", ")))
    }

    pub(in crate::text::chat) fn operand(&self) -> String {
        if self.is_atom { self.text.clone() } else { format!("({})", self.text) }
    }
}

/// Returns the text as a string literal of the template machine.
pub(in crate::text::chat) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}

/// Returns the one term, or the call that folds all of them from the left.
pub(super) fn one_or_call(function: &str, mut terms: Vec<Code>) -> Code {
    while terms.len() > MOST_ARGUMENTS {
        let first: Vec<Code> = terms.drain(..MOST_ARGUMENTS).collect();
        terms.insert(0, Code::call(function, &first));
    }
    match terms.len() {
        1 => terms.remove(0),
        _ => Code::call(function, &terms),
    }
}
