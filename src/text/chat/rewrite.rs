//! A chat template as the template machine takes it.
//!
//! All text becomes string literals, so that every byte written passes the account, and white space is
//! settled here. Tags keep their lines, so that errors name the right ones.

use super::error::Error;
use super::expression::{Parser, quoted};
use super::lexer::{Dialect, Kind, Piece, Token, pieces};

/// Tags with their own end.
const BLOCKS: &[&str] = &["if", "for", "macro", "call", "filter", "with", "block", "generation", "set"];

/// Tags that Jinja has and that need other templates, which a chat template cannot have.
const WITHOUT_LOADER: &[&str] = &["include", "import", "from", "extends"];

/// Returns the rewritten template.
///
/// Errors at what is no Jinja, what needs other templates, and what is left out on purpose.
pub(super) fn rewrite(source: &str, dialect: Dialect) -> Result<String, Error> {
    let mut writer = Writer { out: String::with_capacity(source.len() * 2), line: 1, open: Vec::new() };
    for (piece, line) in pieces(source, dialect)? {
        match piece {
            Piece::Text(text) if text.is_empty() => {}
            Piece::Text(text) => writer.tag("{{", &quoted(&text), "}}", line),
            Piece::Output(tokens) => {
                writer.refuse_varargs(&tokens)?;
                let mut parser = writer.parser(&tokens, line);
                let code = parser.tuple(true)?;
                parser.expect_end()?;
                writer.tag("{{", &code.text, "}}", line);
            }
            Piece::Tag(tokens) => {
                writer.refuse_varargs(&tokens)?;
                if let Some(code) = writer.statement(&tokens, line)? {
                    writer.tag("{%", &code, "%}", line);
                }
            }
        }
    }
    match writer.open.last() {
        Some((name, line)) => Err(Error::Syntax {
            line: *line,
            what: format!("Unexpected end of template: '{name}' is not closed"),
        }),
        None => Ok(writer.out),
    }
}

struct Writer {
    out: String,
    /// The line that `out` has come to.
    line: usize,
    /// Blocks that are not closed yet, with the line each began on.
    open: Vec<(String, usize)>,
}

impl Writer {
    fn parser<'t>(&self, tokens: &'t [Token], line: usize) -> Parser<'t> {
        Parser::new(tokens, line, self.open.iter().any(|(name, _)| name == "if"))
    }

    /// In a macro these two names are the arguments beyond its parameters.
    fn refuse_varargs(&self, tokens: &[Token]) -> Result<(), Error> {
        if !self.open.iter().any(|(name, _)| name == "macro") {
            return Ok(());
        }
        let follows_dot = |at: usize| at > 0 && tokens[at - 1].kind == Kind::Op(".");
        for (at, token) in tokens.iter().enumerate() {
            if let Kind::Name(name) = &token.kind
                && matches!(name.as_str(), "varargs" | "kwargs")
                && !follows_dot(at)
            {
                let what = format!("'{name}' in a macro is not supported");
                return Err(Error::Unsupported { line: token.line, what });
            }
        }
        Ok(())
    }

    /// Writes a tag on its line.
    fn tag(&mut self, open: &str, code: &str, close: &str, line: usize) {
        self.out.push_str(open);
        for _ in self.line..line {
            self.out.push('\n');
        }
        self.out.push(' ');
        self.out.push_str(code);
        self.out.push(' ');
        self.out.push_str(close);
        self.line = self.line.max(line) + code.matches('\n').count();
    }

    fn statement(&mut self, tokens: &[Token], line: usize) -> Result<Option<String>, Error> {
        let mut parser = self.parser(tokens, line);
        let name = match parser.peek() {
            Some(Kind::Name(name)) => name.clone(),
            _ => return parser.fail("tag name expected"),
        };
        parser.expect_name()?;
        if let Some(block) = name.strip_prefix("end").filter(|block| BLOCKS.contains(block)) {
            return self.end(block, parser).map(Some);
        }
        let code = match name.as_str() {
            "if" => {
                let condition = parser.tuple(false)?;
                format!("if {}", condition.text)
            }
            "elif" => {
                self.within(&parser, &["if"], "elif")?;
                format!("elif {}", parser.tuple(false)?.text)
            }
            "else" => {
                self.within(&parser, &["if", "for"], "else")?;
                "else".into()
            }
            "for" => for_loop(&mut parser)?,
            "set" => return self.set(parser, line).map(Some),
            "macro" => {
                let macro_name = parser.expect_name()?;
                format!("macro {macro_name}({})", signature(&mut parser)?)
            }
            "call" => {
                let args =
                    if parser.at_op("(") { format!("({})", signature(&mut parser)?) } else { String::new() };
                format!("call{args} {}", parser.call_only()?.text)
            }
            "filter" => {
                let first = parser.filter()?;
                format!("filter {first}{}", parser.filter_chain()?)
            }
            "with" => with(&mut parser)?,
            "block" => {
                let name = parser.expect_name()?;
                parser.skip_name("scoped");
                format!("block {name}")
            }
            "generation" => "call __generation()".into(),
            "break" | "continue" => {
                if !self.open.iter().any(|(name, _)| name == "for") {
                    return parser.fail(format!("'{name}' outside of a loop"));
                }
                name.clone()
            }
            "print" => {
                let mut terms = Vec::new();
                while !parser.is_done() {
                    if !terms.is_empty() {
                        parser.expect_op(",")?;
                    }
                    terms.push(parser.expression()?.text);
                }
                self.tag("{{", &format!("__concat({})", terms.join(", ")), "}}", line);
                return Ok(None);
            }
            other if WITHOUT_LOADER.contains(&other) => {
                let what = format!("'{other}': no loader for this environment specified");
                return Err(Error::Unsupported { line, what });
            }
            "autoescape" => {
                return Err(Error::Unsupported {
                    line,
                    what: "the tag 'autoescape' is not supported".into(),
                });
            }
            other => return parser.fail(format!("Encountered unknown tag '{other}'.")),
        };
        parser.expect_end()?;
        if BLOCKS.contains(&name.as_str()) {
            self.open.push((name, line));
        }
        Ok(Some(code))
    }

    fn within(&self, parser: &Parser, blocks: &[&str], what: &str) -> Result<(), Error> {
        match self.open.last() {
            Some((name, _)) if blocks.contains(&name.as_str()) => Ok(()),
            Some((name, line)) => {
                parser.fail(format!("Unexpected '{what}' within the '{name}' of line {line}"))
            }
            None => parser.fail(format!("Encountered unknown tag '{what}'.")),
        }
    }

    fn end(&mut self, block: &str, mut parser: Parser) -> Result<String, Error> {
        self.within(&parser, &[block], &format!("end{block}"))?;
        self.open.pop();
        if block == "block" && !parser.is_done() {
            parser.expect_name()?;
        }
        parser.expect_end()?;
        Ok(if block == "generation" { "endcall".into() } else { format!("end{block}") })
    }

    fn set(&mut self, mut parser: Parser, line: usize) -> Result<String, Error> {
        let target = parser.target(true)?;
        if !parser.skip_op("=") {
            let filters = parser.filter_chain()?;
            parser.expect_end()?;
            if target.attribute.is_some() {
                let what = "a block set to a namespace's attribute is not supported".into();
                return Err(Error::Unsupported { line, what });
            }
            self.open.push(("set".into(), line));
            return Ok(format!("set {}{filters}", target.text));
        }
        let value = parser.tuple(true)?;
        parser.expect_end()?;
        Ok(match target.attribute {
            None => format!("set {} = {}", target.text, value.text),
            Some(name) if name.starts_with('_') => {
                format!("set {} = __private({})", target.text, quoted(&name))
            }
            Some(_) => format!("set {} = __store({})", target.text, value.operand()),
        })
    }
}

fn for_loop(parser: &mut Parser) -> Result<String, Error> {
    let target = parser.target(false)?;
    if !parser.skip_name("in") {
        return parser.fail("expected 'in'");
    }
    let iterated = parser.tuple(false)?;
    let mut code = format!("for {} in __iter({})", target.text, iterated.text);
    if parser.skip_name("if") {
        code.push_str(&format!(" if {}", parser.expression()?.operand()));
    }
    if parser.skip_name("recursive") {
        code.push_str(" recursive");
    }
    Ok(code)
}

/// The parameters of a macro or a caller, without the parentheses.
fn signature(parser: &mut Parser) -> Result<String, Error> {
    parser.expect_op("(")?;
    let mut parameters = Vec::new();
    while !parser.at_op(")") {
        if !parameters.is_empty() {
            parser.expect_op(",")?;
        }
        let name = parser.expect_name()?;
        match parser.skip_op("=") {
            true => parameters.push(format!("{name}={}", parser.expression()?.operand())),
            false => parameters.push(name.to_owned()),
        }
    }
    parser.expect_op(")")?;
    Ok(parameters.join(", "))
}

fn with(parser: &mut Parser) -> Result<String, Error> {
    let mut assignments = Vec::new();
    while !parser.is_done() {
        if !assignments.is_empty() {
            parser.expect_op(",")?;
        }
        let target = parser.target(false)?;
        parser.expect_op("=")?;
        assignments.push(format!("{} = {}", target.text, parser.expression()?.operand()));
    }
    Ok(format!("with {}", assignments.join(", ")))
}
