//! `config.json` and `generation_config.json` of Hugging Face checkpoints.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Config, MAX_CONTEXT, MAX_LAYERS, MAX_SIZE, RopeScaling, check_size};
use crate::model::ModelError;

/// Supported architecture, as a message says it.
const ARCHITECTURE: &str = "model_type \"llama\" with LlamaForCausalLM (Llama 2, 3, 3.1, 3.2)";

impl Config {
    /// Reads the text of a `config.json`. Both layouts of the rotary parameters are known:
    /// `rope_theta` with `rope_scaling`, and `rope_parameters` (transformers 5). Whatever would make
    /// the model compute something else than plain Llama is refused by field and value; `path` is only
    /// for the message.
    pub fn from_hf(path: &Path, json: &str) -> Result<Self, ModelError> {
        let root = parse(path, json)?;
        let fields = Fields { path, prefix: "", object: &root };
        check_architecture(&fields)?;

        let (hidden, n_heads) =
            (fields.size("hidden_size", MAX_SIZE)?, fields.size("num_attention_heads", MAX_SIZE)?);
        let (rope_base, rope_scaling) = rope(&fields)?;
        let config = Self {
            hidden,
            ffn: fields.size("intermediate_size", MAX_SIZE)?,
            n_layers: fields.size("num_hidden_layers", MAX_LAYERS)?,
            n_heads,
            n_kv_heads: fields.optional_size("num_key_value_heads", MAX_SIZE)?.unwrap_or(n_heads),
            head_dim: match fields.optional_size("head_dim", MAX_SIZE)? {
                Some(head_dim) => head_dim,
                None => implied_head_dim(path, hidden, n_heads)?,
            },
            vocab: fields.size("vocab_size", MAX_SIZE)?,
            context: fields.size("max_position_embeddings", MAX_CONTEXT)?,
            rms_eps: fields.number("rms_norm_eps")?,
            rope_base,
            rope_scaling,
            tied: fields.flag("tie_word_embeddings")?,
            bos: fields.token_ids("bos_token_id")?.first().copied(),
            eos: fields.token_ids("eos_token_id")?,
        };
        config.validate(path)?;
        Ok(config)
    }

    /// Takes the special tokens from the text of a `generation_config.json` where it names any: as in
    /// transformers, its list replaces that of `config.json`.
    pub fn with_generation(mut self, path: &Path, json: &str) -> Result<Self, ModelError> {
        let root = parse(path, json)?;
        let fields = Fields { path, prefix: "", object: &root };
        let eos = fields.token_ids("eos_token_id")?;
        if !eos.is_empty() {
            self.eos = eos;
        }
        self.bos = fields.token_ids("bos_token_id")?.first().copied().or(self.bos);
        self.validate(path)?;
        Ok(self)
    }
}

/// Head width where the file does not give one; also used for GGUF.
pub(crate) fn implied_head_dim(path: &Path, hidden: usize, n_heads: usize) -> Result<usize, ModelError> {
    if hidden.is_multiple_of(n_heads) {
        return Ok(hidden / n_heads);
    }
    let what = format!("hidden size {hidden} over {n_heads} query heads without an explicit head width");
    Err(ModelError::unsupported(path, what, "a hidden size that the heads divide, or an explicit head width"))
}

fn parse(path: &Path, json: &str) -> Result<Map<String, Value>, ModelError> {
    serde_json::from_str(json).map_err(|e| ModelError::corrupt(path, format!("not a JSON object ({e})")))
}

/// Refuses everything that is not the plain Llama decoder.
fn check_architecture(fields: &Fields) -> Result<(), ModelError> {
    let model_type = fields.text("model_type")?;
    if model_type.is_some_and(|t| t != "llama") {
        return fields.refuse("model_type", ARCHITECTURE);
    }
    let is_llama = |v: &Value| v.as_str() == Some("LlamaForCausalLM");
    match fields.get("architectures") {
        Some(Value::Array(names)) if names.iter().any(is_llama) => {}
        Some(Value::Array(names)) if names.is_empty() && model_type.is_some() => {}
        None if model_type.is_some() => {}
        None => return Err(fields.missing("model_type")),
        Some(_) => return fields.refuse("architectures", ARCHITECTURE),
    }
    for bias in ["attention_bias", "mlp_bias"] {
        if fields.flag(bias)? {
            return fields.refuse(bias, "false (no biases)");
        }
    }
    if fields.text("hidden_act")?.is_some_and(|activation| activation != "silu") {
        return fields.refuse("hidden_act", "\"silu\"");
    }
    if let Some(Value::Object(quantisation)) = fields.get("quantization_config") {
        let method = quantisation.get("quant_method").unwrap_or(&Value::Null);
        let what = format!("quantization_config with quant_method {method}");
        return Err(ModelError::unsupported(
            fields.path,
            what,
            "BF16, F16 or F32 safetensors, or GGUF in Q8_0, Q4_0 or Q4_1",
        ));
    }
    if fields.get("partial_rotary_factor").is_some_and(|f| f.as_f64() != Some(1.0)) {
        return fields.refuse("partial_rotary_factor", "1 (whole heads are rotated)");
    }
    Ok(())
}

/// Base and scaling of the rotary embedding, from either layout.
fn rope(fields: &Fields) -> Result<(f32, RopeScaling), ModelError> {
    let (name, type_default) = match fields.get("rope_parameters") {
        Some(_) => ("rope_parameters.", Some("default")),
        None => ("rope_scaling.", None),
    };
    let top_base = fields.optional_number("rope_theta")?;
    let object = match fields.get(name.trim_end_matches('.')) {
        None => return Ok((top_base.unwrap_or(10_000.0), RopeScaling::None)),
        Some(Value::Object(object)) => object,
        Some(_) => return fields.refuse(name.trim_end_matches('.'), "null or an object"),
    };
    let inner = Fields { path: fields.path, prefix: name, object };
    let base = inner.optional_number("rope_theta")?.or(top_base).unwrap_or(10_000.0);
    if inner.get("partial_rotary_factor").is_some_and(|f| f.as_f64() != Some(1.0)) {
        return inner.refuse("partial_rotary_factor", "1 (whole heads are rotated)");
    }
    let key = if inner.get("rope_type").is_some() { "rope_type" } else { "type" };
    match inner.text(key)?.or(type_default) {
        None => Err(inner.missing("rope_type")),
        Some("default") => Ok((base, RopeScaling::None)),
        Some("llama3") => Ok((
            base,
            RopeScaling::Llama3 {
                factor: inner.number("factor")?,
                low_freq_factor: inner.number("low_freq_factor")?,
                high_freq_factor: inner.number("high_freq_factor")?,
                original_context: inner.size("original_max_position_embeddings", MAX_CONTEXT)?,
            },
        )),
        Some(_) => inner.refuse(key, "\"default\" and \"llama3\""),
    }
}

/// Typed access to a JSON object, with errors that name the field. A null is an absent field.
struct Fields<'a> {
    path: &'a Path,
    /// Put before a name in messages: `rope_scaling.` for the fields inside that object.
    prefix: &'a str,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|v| !v.is_null())
    }

    fn missing(&self, name: &str) -> ModelError {
        ModelError::corrupt(self.path, format!("the field '{}{name}' is missing", self.prefix))
    }

    fn wrong(&self, name: &str, value: &Value, expected: &str) -> ModelError {
        ModelError::corrupt(self.path, format!("'{}{name}' is {value}, not {expected}", self.prefix))
    }

    /// The error for a field whose value is understood but not run here.
    fn refuse<T>(&self, name: &str, supported: &str) -> Result<T, ModelError> {
        let value = self.object.get(name).unwrap_or(&Value::Null);
        Err(ModelError::unsupported(self.path, format!("{}{name} {value}", self.prefix), supported))
    }

    fn optional<T>(
        &self,
        name: &str,
        expected: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        convert(value).map(Some).ok_or_else(|| self.wrong(name, value, expected))
    }

    fn text(&self, name: &str) -> Result<Option<&'a str>, ModelError> {
        self.optional(name, "a string", Value::as_str)
    }

    fn flag(&self, name: &str) -> Result<bool, ModelError> {
        Ok(self.optional(name, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    fn optional_number(&self, name: &str) -> Result<Option<f32>, ModelError> {
        self.optional(name, "a number", |v| v.as_f64().map(|x| x as f32))
    }

    fn number(&self, name: &str) -> Result<f32, ModelError> {
        self.optional_number(name)?.ok_or_else(|| self.missing(name))
    }

    fn optional_size(&self, name: &str, limit: usize) -> Result<Option<usize>, ModelError> {
        let size =
            self.optional(name, "a whole number", |v| v.as_u64().and_then(|n| usize::try_from(n).ok()))?;
        if let Some(value) = size {
            check_size(self.path, &format!("{}{name}", self.prefix), value, limit)?;
        }
        Ok(size)
    }

    fn size(&self, name: &str, limit: usize) -> Result<usize, ModelError> {
        self.optional_size(name, limit)?.ok_or_else(|| self.missing(name))
    }

    /// One id or a list of ids; absent is an empty list.
    fn token_ids(&self, name: &str) -> Result<Vec<u32>, ModelError> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = self.optional(name, "a token id or a list of them", |value| match value {
            Value::Array(list) => list.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default())
    }
}

#[cfg(test)]
#[path = "hf_tests.rs"]
mod tests;
