//! From what `--model` says to a model that can be loaded.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::chat::{ChatTemplate, Message};
use super::{
    Checkpoint, Config, GgufVocab, ModelError, Tensor, TensorSource, Tokenizer, fetch, gguf, hub, random,
};

/// An opened model; its weights are mapped, not read.
pub struct Model {
    /// What it was asked for as.
    pub name: String,
    /// The hyper-parameters.
    pub config: Config,
    /// The weights.
    pub source: Arc<dyn TensorSource>,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// Where the chat template comes from; it is parsed when it is used.
    template: Template,
}

enum Template {
    Folder(PathBuf),
    Gguf(Box<GgufVocab>),
    /// Random weights were tuned for no conversation.
    None,
}

impl Model {
    /// Opens `spec`: `random:SHAPE…`, a file or folder that exists, a known name (fetched once), or a
    /// Hugging Face id `org/name` (fetched once).
    pub fn open(spec: &str) -> Result<Self, ModelError> {
        if spec.starts_with(random::PREFIX) {
            return Self::from_checkpoint(spec, Checkpoint::random(spec)?);
        }
        let path = Path::new(spec);
        if path.exists() {
            return Self::from_checkpoint(spec, Checkpoint::open(path)?);
        }
        if looks_like_a_file(path) {
            let hint = "there is no such file; check the path, or give a folder or a name instead";
            return Err(ModelError::not_found(spec, hint));
        }
        if let Some(known) = fetch::known(spec) {
            return Self::from_checkpoint(spec, Checkpoint::open(&fetch::fetch(known)?)?);
        }
        if hub::is_repo_id(spec) {
            let folder = hub::download(spec, &hub::HubOptions::from_env()?)?;
            return Self::from_checkpoint(spec, Checkpoint::open(&folder)?);
        }
        Err(ModelError::not_found(
            spec,
            format!(
                "give {}, a Hugging Face id (org/name), an existing folder or file, or random:SHAPE",
                fetch::KNOWN_MODELS.map(|m| m.name).join(", ")
            ),
        ))
    }

    /// Finds the tokenizer that belongs to a checkpoint.
    pub fn from_checkpoint(name: &str, checkpoint: Checkpoint) -> Result<Self, ModelError> {
        let Checkpoint { config, source, gguf, folder } = checkpoint;
        let (tokenizer, template) = match (gguf, folder) {
            (Some(metadata), _) => {
                let vocab = gguf_vocab(&metadata)?;
                (Tokenizer::from_vocab(&vocab)?, Template::Gguf(Box::new(vocab)))
            }
            (None, Some(folder)) => {
                (Tokenizer::from_file(&folder.join("tokenizer.json"))?, Template::Folder(folder))
            }
            (None, None) => (Tokenizer::bytes(config.vocab)?, Template::None),
        };
        tokenizer.check_vocab(config.vocab)?;
        Ok(Self { name: name.into(), config, source, tokenizer, template })
    }

    /// The tokens of a conversation that consists of one message of the user.
    pub fn encode_chat(&self, message: &str) -> Result<Vec<u32>, ModelError> {
        let template = match &self.template {
            Template::Folder(folder) => ChatTemplate::from_dir(folder)?,
            Template::Gguf(vocab) => ChatTemplate::from_gguf(vocab)?,
            Template::None => {
                let what = "random weights have none; leave --chat out".into();
                return Err(ModelError::Chat { what });
            }
        };
        self.tokenizer.encode_plain(&template.render(&[Message::user(message)], true)?)
    }

    /// Bytes of the weights when they are loaded, the embedding left out unless it is the head too.
    pub fn weight_bytes(&self) -> u64 {
        let bytes = |tensor: Tensor| {
            let (rows, cols) = tensor.shape(&self.config);
            (rows * cols) as u64 * self.source.storage(tensor).bytes()
        };
        let embedding = Tensor::global(super::TensorKind::Embedding);
        let all = Tensor::all(&self.config).into_iter().filter(|&t| self.config.tied || t != embedding);
        all.map(bytes).sum()
    }
}

/// `models/llama.gguf` has the form of a hub's `org/name`, but is no repository that we could mean.
fn looks_like_a_file(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    ["gguf", "safetensors", "json", "bin", "pth"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// The tokenizer's part of a GGUF file's metadata.
fn gguf_vocab(metadata: &gguf::Metadata) -> Result<GgufVocab, ModelError> {
    let list = |key: &str| Ok::<_, ModelError>(metadata.strings(key)?.unwrap_or_default().to_vec());
    let text = |key: &str| Ok::<_, ModelError>(metadata.str(key)?.map(String::from));
    let model = metadata.require("tokenizer.ggml.model", metadata.str("tokenizer.ggml.model"))?;
    Ok(GgufVocab {
        model: model.into(),
        pre: text("tokenizer.ggml.pre")?,
        tokens: list("tokenizer.ggml.tokens")?,
        scores: metadata.f32s("tokenizer.ggml.scores")?.unwrap_or_default().to_vec(),
        token_types: metadata.i32s("tokenizer.ggml.token_type")?.unwrap_or_default().to_vec(),
        merges: list("tokenizer.ggml.merges")?,
        bos: metadata.u32("tokenizer.ggml.bos_token_id")?,
        eos: metadata.u32("tokenizer.ggml.eos_token_id")?,
        eot: metadata.u32("tokenizer.ggml.eot_token_id")?,
        unk: metadata.u32("tokenizer.ggml.unknown_token_id")?,
        add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?,
        add_space_prefix: metadata.bool("tokenizer.ggml.add_space_prefix")?,
        chat_template: text("tokenizer.chat_template")?,
    })
}
