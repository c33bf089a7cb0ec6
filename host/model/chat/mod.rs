//! Chat templates: from messages to the prompt that a model was tuned on.
//!
//! Templates are Jinja in the dialect of transformers: blocks trimmed, loop controls, Python's string
//! and dictionary methods, `raise_exception`, `strftime_now`. Tools and documents are not passed.

mod strftime;

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde_json::Value as Json;

use super::{GgufVocab, ModelError};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A turn of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }

    /// A turn of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }
}

/// A model's chat template, parsed.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

/// Under which the template is known to its environment, and named in messages.
const NAME: &str = "chat";

impl ChatTemplate {
    /// Parses `source`; `bos` and `eos` are the texts of those tokens, or empty.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, ModelError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| failed(&e))?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", |format: String| strftime::now(&format));
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(|e| failed(&e))?;
        Ok(Self { environment, bos: bos.into(), eos: eos.into() })
    }

    /// From a model folder: `chat_template.jinja`, else `chat_template` of `tokenizer_config.json`, a
    /// string or a list of named templates of which `default` is taken.
    pub fn from_dir(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join("tokenizer_config.json");
        let config = match read(&path)? {
            Some(text) => serde_json::from_str(&text)
                .map_err(|e| ModelError::corrupt(&path, format!("not valid JSON: {e}")))?,
            None => Json::Null,
        };
        let source = match read(&dir.join("chat_template.jinja"))? {
            Some(source) => Some(source),
            None => configured(&config["chat_template"]).map(String::from),
        };
        let token = |key: &str| {
            let token = &config[key];
            token.as_str().or(token["content"].as_str()).unwrap_or_default().to_string()
        };
        Self::new(&source.ok_or_else(no_template)?, &token("bos_token"), &token("eos_token"))
    }

    /// From the metadata of a GGUF file.
    pub fn from_gguf(vocab: &GgufVocab) -> Result<Self, ModelError> {
        let source = vocab.chat_template.as_deref().ok_or_else(no_template)?;
        Self::new(source, vocab.token(vocab.bos), vocab.token(vocab.eos))
    }

    /// The prompt for `messages`, up to the place where the model's answer begins if
    /// `add_generation_prompt`. It writes BOS itself where the model wants one: encode it with
    /// [`encode_plain`](super::Tokenizer::encode_plain).
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, ModelError> {
        let messages: Vec<Value> =
            messages.iter().map(|m| context! { role => &m.role, content => &m.content }).collect();
        let context = context! {
            messages,
            add_generation_prompt,
            bos_token => &self.bos,
            eos_token => &self.eos,
            tools => (),
            documents => (),
        };
        let template = self.environment.get_template(NAME).map_err(|e| failed(&e))?;
        template.render(context).map_err(|e| failed(&e))
    }
}

/// The template in the value of `chat_template`.
fn configured(value: &Json) -> Option<&str> {
    let named = |entry: &&Json| entry["name"] == "default";
    let default = || value.as_array()?.iter().find(named)?["template"].as_str();
    value.as_str().or_else(default)
}

/// The file's text, or nothing where there is no such file.
fn read(path: &Path) -> Result<Option<String>, ModelError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(ModelError::io(path, "read", e)),
    }
}

/// `{% generation %}` marks the answer for training and prints nothing: a block that always runs.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        let Some((body, after)) = tag.split_once("%}") else { break };
        let inner = body.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let body = match inner {
            "generation" => body.replacen(inner, "if true", 1),
            "endgeneration" => body.replacen(inner, "endif", 1),
            _ => body.to_string(),
        };
        out.extend([before, "{%", &body, "%}"]);
        rest = after;
    }
    out + rest
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn no_template() -> ModelError {
    let what =
        "the model has none, so it was not tuned to chat; leave out --chat to continue the prompt as text";
    ModelError::Chat { what: what.into() }
}

fn failed(error: &Error) -> ModelError {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), String::from);
    let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    ModelError::Chat { what: detail + &line }
}

#[cfg(test)]
mod tests;
