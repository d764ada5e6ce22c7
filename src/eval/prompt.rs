//! From a system text, solved examples and a question to one prompt, plain or for a chat.
//!
//! Plain prompts are lm-eval's: system text, then per example question, delimiter, answer, blank line; then the
//! question. For a chat the system text is the system message and the rest one user message, or, with
//! `multiturn`, every example a question of the user and an answer of the assistant.

/// What surrounds the question of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Framing {
    pub system: String,
    /// Between system text and what follows in a plain prompt.
    pub system_delimiter: String,
    /// Between question and answer.
    pub target_delimiter: String,
    /// After an example's answer.
    pub shot_delimiter: String,
    pub multiturn: bool,
}

/// A solved example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shot {
    pub question: String,
    pub answer: String,
}

/// Who says a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    System,
    User,
    Assistant,
}

impl Role {
    /// Returns the name chat templates know.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// A message of a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub role: Role,
    pub content: String,
}

impl Framing {
    /// Returns the plain prompt.
    pub fn plain(&self, shots: &[Shot], question: &str) -> String {
        let mut text = self.system.clone();
        if !text.is_empty() {
            text.push_str(&self.system_delimiter);
        }
        self.push_examples(shots, &mut text);
        text.push_str(question);
        text
    }

    /// Returns the messages of the chat, the last one the user's.
    pub fn messages(&self, shots: &[Shot], question: &str) -> Vec<Message> {
        let message = |role, content: &str| Message { role, content: content.to_owned() };
        let mut messages = Vec::new();
        if !self.system.is_empty() {
            messages.push(message(Role::System, &self.system));
        }
        if self.multiturn {
            for shot in shots {
                messages.push(message(Role::User, &shot.question));
                messages.push(message(Role::Assistant, &shot.answer));
            }
            messages.push(message(Role::User, question));
        } else {
            let mut text = String::new();
            self.push_examples(shots, &mut text);
            text.push_str(question);
            messages.push(Message { role: Role::User, content: text });
        }
        messages
    }

    fn push_examples(&self, shots: &[Shot], text: &mut String) {
        for shot in shots {
            for piece in [&shot.question, &self.target_delimiter, &shot.answer, &self.shot_delimiter] {
                text.push_str(piece);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framing(multiturn: bool) -> Framing {
        let text = str::to_owned;
        Framing {
            system: text("S"),
            system_delimiter: text("\n"),
            target_delimiter: text(" "),
            shot_delimiter: text("\n\n"),
            multiturn,
        }
    }

    fn shots() -> Vec<Shot> {
        ["1", "2"].map(|n| Shot { question: format!("q{n}"), answer: format!("a{n}") }).to_vec()
    }

    #[test]
    fn plain_prompts_are_lm_evals() {
        assert_eq!(framing(false).plain(&shots(), "q"), "S\nq1 a1\n\nq2 a2\n\nq");
        assert_eq!(Framing { system: String::new(), ..framing(false) }.plain(&[], "q"), "q");
    }

    #[test]
    fn chats_have_one_user_message_or_a_turn_per_example() {
        let said = |messages: Vec<Message>| -> Vec<String> {
            messages.iter().map(|message| format!("{}: {}", message.role.name(), message.content)).collect()
        };
        assert_eq!(said(framing(false).messages(&shots(), "q")), ["system: S", "user: q1 a1\n\nq2 a2\n\nq"]);
        assert_eq!(
            said(framing(true).messages(&shots()[..1], "q")),
            ["system: S", "user: q1", "assistant: a1", "user: q"]
        );
    }
}
