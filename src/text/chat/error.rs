//! What goes wrong with a chat template.

use crate::error::Diagnostic;

/// A chat template that cannot be read, or that cannot render this conversation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: no chat template")]
    Missing { path: String },
    #[error("{path}: no chat template named `{name}`")]
    NoSuchName { path: String, name: String, known: Vec<String> },
    #[error("chat template, line {line}: {what}")]
    Syntax { line: usize, what: String },
    #[error("chat template, line {line}: {what}")]
    Unsupported { line: usize, what: String },
    /// The template called `raise_exception`.
    #[error("the chat template refuses this conversation: {message}")]
    Raised { message: String },
    #[error("chat template, line {line}: {what}")]
    Undefined { line: usize, what: String },
    #[error("chat template, line {line}: {what}")]
    Type { line: usize, what: String },
    #[error("chat template, line {line}: {what}")]
    Security { line: usize, what: String },
    #[error("chat template, line {line}: stopped, {what}")]
    Limit { line: usize, what: String },
    #[error("{what}")]
    Request { what: String },
}

impl Error {
    /// Returns the message without where it happened, as a template's author wrote it where he did.
    pub fn message(&self) -> String {
        match self {
            Error::Raised { message } => message.clone(),
            Error::Syntax { what, .. }
            | Error::Unsupported { what, .. }
            | Error::Undefined { what, .. }
            | Error::Type { what, .. }
            | Error::Security { what, .. }
            | Error::Limit { what, .. }
            | Error::Request { what } => what.clone(),
            Error::Missing { .. } | Error::NoSuchName { .. } => self.to_string(),
        }
    }
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Error::Missing { .. } => {
                "the model may be a base model: leave out the chat option, or give a template with --template FILE"
                    .into()
            }
            Error::NoSuchName { known, .. } => format!("the checkpoint has: {}", known.join(", ")),
            Error::Raised { .. } => {
                "the model's template accepts only certain roles, in a certain order; change the conversation".into()
            }
            Error::Syntax { .. } | Error::Unsupported { .. } => {
                "`lctl inspect MODEL --chat-template` prints the template; --template FILE replaces it".into()
            }
            Error::Undefined { .. } => "the template reads something that the conversation does not have".into(),
            Error::Type { .. } => "the template does not expect a conversation of this form".into(),
            Error::Security { .. } | Error::Limit { .. } => {
                "do not use this model before you have read its template (`lctl inspect MODEL --chat-template`)".into()
            }
            Error::Request { .. } => return None,
        })
    }
}

/// What a function called by a template reports; it travels as the source of a `minijinja::Error`.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("{0}")]
    Raised(String),
    #[error("{0}")]
    Undefined(String),
    #[error("{0}")]
    Type(String),
    #[error("{0}")]
    Security(String),
    #[error("{0}")]
    Limit(String),
    #[error("{0}")]
    Unsupported(String),
}

impl From<Fault> for minijinja::Error {
    fn from(fault: Fault) -> Self {
        let kind = match fault {
            Fault::Undefined(_) => minijinja::ErrorKind::UndefinedError,
            _ => minijinja::ErrorKind::InvalidOperation,
        };
        minijinja::Error::new(kind, fault.to_string()).with_source(fault)
    }
}

/// Returns a type error as Python would word it.
pub(super) fn type_error<T>(what: impl Into<String>) -> Result<T, minijinja::Error> {
    Err(Fault::Type(what.into()).into())
}

impl From<minijinja::Error> for Error {
    fn from(error: minijinja::Error) -> Self {
        use minijinja::ErrorKind;
        let line = error.line().unwrap_or(0);
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(current) = cause {
            if let Some(fault) = current.downcast_ref::<Fault>() {
                let fault = fault.clone();
                return match fault {
                    Fault::Raised(message) => Error::Raised { message },
                    Fault::Undefined(what) => Error::Undefined { line, what },
                    Fault::Type(what) => Error::Type { line, what },
                    Fault::Security(what) => Error::Security { line, what },
                    Fault::Limit(what) => Error::Limit { line, what },
                    Fault::Unsupported(what) => Error::Unsupported { line, what },
                };
            }
            let held = current.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
            if let Some(Fault::Limit(what)) = held.and_then(|held| held.downcast_ref::<Fault>()) {
                return Error::Limit { line, what: what.clone() };
            }
            cause = current.source();
        }
        let what = match error.detail() {
            Some(detail) => format!("{}: {detail}", error.kind()),
            None => error.kind().to_string(),
        };
        match error.kind() {
            ErrorKind::OutOfFuel => Error::Limit { line, what: "it takes too many steps".into() },
            ErrorKind::SyntaxError | ErrorKind::UnknownFilter => Error::Syntax { line, what },
            ErrorKind::UndefinedError | ErrorKind::UnknownFunction => Error::Undefined { line, what },
            _ if what.contains("recursion limit") => Error::Limit { line, what },
            _ => Error::Type { line, what },
        }
    }
}
