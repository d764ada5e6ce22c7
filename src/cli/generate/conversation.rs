//! Conversations: the messages so far go through the chat template at every turn.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::PathBuf;

use chrono::NaiveDateTime;
use serde_json::{Map, Value, json};

use super::output::{self, Answer, answer};
use super::prompt::{self, LONGEST, PromptError, text_of};
use super::{Args, Interrupt};
use crate::cli::model::LoadedModel;
use crate::cli::term;
use crate::error::Failure;
use crate::eval::Computer;
use crate::eval::generate::Session;
use crate::text::EncodeOptions;
use crate::text::chat::{ChatRequest, ChatTemplate, Error as ChatError};

const COMMANDS: &str = "/clear begins a new conversation, /exit or Ctrl-D leaves, Ctrl-C ends an answer; \
a line that ends with \\ goes on";

struct Conversation<'a> {
    template: ChatTemplate,
    variables: Map<String, Value>,
    now: NaiveDateTime,
    system: Option<&'a str>,
    messages: Vec<Value>,
}

impl<'a> Conversation<'a> {
    /// Errors if the model has no template and none is given, or if it cannot be read.
    fn new(args: &'a Args, model: &LoadedModel, variables: Map<String, Value>) -> Result<Self, Failure> {
        let given = args.template.as_deref().map(text_of).transpose()?;
        let missing = || ChatError::Missing { path: model.path.display().to_string() };
        let source = given.as_deref().or(model.tokenizer.chat_template()).ok_or_else(missing)?;
        let template = ChatTemplate::new(source, model.tokenizer.special_tokens())?;
        let now = args.now.unwrap_or_else(|| chrono::Local::now().naive_local());
        let mut conversation =
            Conversation { template, variables, now, system: args.system.as_deref(), messages: Vec::new() };
        conversation.clear();
        Ok(conversation)
    }

    fn clear(&mut self) {
        self.messages.clear();
        self.messages.extend(self.system.map(|text| json!({"role": "system", "content": text})));
    }

    fn push(&mut self, role: &str, text: &str) {
        self.messages.push(json!({"role": role, "content": text}));
    }

    /// Returns the text up to where the assistant's next message begins.
    fn text(&self) -> Result<String, Failure> {
        let mut extra = self.variables.clone();
        let [tools, documents] = ["tools", "documents"].map(|name| extra.shift_remove(name));
        let request = ChatRequest {
            add_generation_prompt: true,
            extra,
            tools: tools.as_ref().and_then(Value::as_array).map(Vec::as_slice),
            documents: documents.as_ref().and_then(Value::as_array).map(Vec::as_slice),
            ..ChatRequest::new(&self.messages, self.now)
        };
        let text = self.template.render(&request)?.text;
        if text.is_empty() { Err(PromptError::EmptyConversation.into()) } else { Ok(text) }
    }

    fn answer(
        &self,
        args: &Args,
        model: &LoadedModel,
        session: &mut Session<'_, Computer<'_>>,
        interrupt: &Interrupt,
    ) -> Result<(String, Vec<u32>, Answer), Failure> {
        let text = self.text()?;
        // the template writes the special tokens itself
        let options = EncodeOptions { add_special: false, parse_special: true };
        let tokens = model.tokenizer.encode(&text, options)?;
        let answer = answer(args, model, session, tokens.clone(), interrupt, true)?;
        Ok((text, tokens, answer))
    }
}

/// Answers one message.
pub(super) fn one_turn(
    args: &Args,
    model: &LoadedModel,
    session: &mut Session<'_, Computer<'_>>,
    variables: Map<String, Value>,
    prompt: &str,
    interrupt: &Interrupt,
) -> Result<(), Failure> {
    let mut conversation = Conversation::new(args, model, variables)?;
    conversation.push("user", prompt);
    let (text, tokens, answer) = conversation.answer(args, model, session, interrupt)?;
    let now = conversation.now.format("%Y-%m-%dT%H:%M:%S").to_string();
    let said = json!({
        "prompt": text,
        "prompt_tokens": tokens,
        "messages": conversation.messages,
        "template_variables": conversation.variables,
        "now": now,
    });
    output::deliver(args, model, &answer, &said)
}

/// Converses until the input ends. A message that the template or the context refuses is taken back.
pub(super) fn on_terminal(
    args: &Args,
    model: &LoadedModel,
    session: &mut Session<'_, Computer<'_>>,
    variables: Map<String, Value>,
    interrupt: &Interrupt,
) -> Result<(), Failure> {
    let mut conversation = Conversation::new(args, model, variables)?;
    let asks = io::stdin().is_terminal();
    if asks && !args.quiet {
        term::say(COMMANDS);
    }
    while let Some(message) = next_message(asks)? {
        match message.trim() {
            "" => continue,
            "/exit" => return Ok(()),
            "/clear" => {
                conversation.clear();
                session.clear();
                continue;
            }
            command if command.starts_with('/') && !command.contains(char::is_whitespace) => {
                term::say(&format!("unknown command {}; {COMMANDS}", term::printable(command)));
                continue;
            }
            _ => conversation.push("user", &message),
        }
        match conversation.answer(args, model, session, interrupt) {
            Ok((_, _, answer)) => {
                output::end_of_text(&answer)?;
                if !args.quiet {
                    output::figures(&answer);
                }
                conversation.push("assistant", &answer.generated.text);
            }
            // a script has no one to try again
            Err(failure) if !asks => return Err(failure),
            Err(failure) => {
                term::say(&failure.to_string());
                conversation.messages.pop();
            }
        }
    }
    Ok(())
}

/// Returns the next message of the input, `None` at its end.
fn next_message(asks: bool) -> Result<Option<String>, Failure> {
    let mut message = String::new();
    loop {
        if asks {
            let _ = write!(io::stderr().lock(), "{}", if message.is_empty() { "> " } else { "… " });
        }
        let path = || PathBuf::from("standard input");
        let mut line = Vec::new();
        match io::stdin().lock().take(LONGEST + 1).read_until(b'\n', &mut line) {
            Ok(0) => return Ok(Some(message).filter(|message| !message.is_empty())),
            Ok(_) => {}
            Err(source) => return Err(PromptError::Read { path: path(), source }.into()),
        }
        let line = prompt::utf8(path(), line)?;
        if (message.len() + line.len()) as u64 > LONGEST {
            return Err(PromptError::TooManyBytes { path: path() }.into());
        }
        let line = line.strip_suffix('\n').unwrap_or(&line);
        let line = line.strip_suffix('\r').unwrap_or(line);
        match line.strip_suffix('\\') {
            Some(part) => {
                message.push_str(part);
                message.push('\n');
            }
            None => {
                message.push_str(line);
                return Ok(Some(message));
            }
        }
    }
}
