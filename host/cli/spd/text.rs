//! The text that the SPD commands measure on.

use std::path::PathBuf;

use anyhow::ensure;

use crate::cli::generate::read_text;
use crate::cli::layout::at_least;
use crate::cli::output;
use crate::cli::session::progress_bar;
use crate::model::Model;
use crate::runner::Runner;
use crate::spd::Calibration;

#[derive(clap::Args)]
pub(super) struct TextArgs {
    /// Text to measure on (UTF-8); without it the model writes its own
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Number of chunks, each of which stands alone
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = at_least::<1>, allow_negative_numbers = true)]
    chunks: usize,
    /// Tokens per chunk
    #[arg(long, value_name = "C", default_value_t = 512, value_parser = at_least::<2>, allow_negative_numbers = true)]
    chunk_len: usize,
    /// Seed of the text that the model writes
    #[arg(long, value_name = "S", default_value_t = 0, conflicts_with = "text")]
    text_seed: u64,
}

impl TextArgs {
    /// Whether the user named a text.
    pub(super) fn is_given(&self) -> bool {
        self.text.is_some()
    }

    /// Reads the text, or has the model write it.
    pub(super) fn calibration(&self, model: &Model, runner: &mut dyn Runner) -> anyhow::Result<Calibration> {
        let (chunk_len, limit) = (self.chunk_len, model.config.context);
        ensure!(
            chunk_len <= limit,
            "--chunk-len {chunk_len} exceeds the model's context of {limit}: choose at most {limit}"
        );
        let Some(path) = &self.text else {
            let bar =
                progress_bar(chunk_len as u64, "writing the text", "{pos}/{len} tokens of every chunk,");
            let text = Calibration::generated(runner, self.chunks, chunk_len, self.text_seed, || bar.inc(1))?;
            bar.finish_and_clear();
            return Ok(text);
        };
        let tokens = model.tokenizer.encode_plain(&read_text(path)?)?;
        let text = Calibration::of_text(&tokens, self.chunks, chunk_len)?;
        if text.n_tokens() > tokens.len() {
            output::note(&format!(
                "note: {} chunks of {chunk_len} overlap in a text of {} tokens, so some tokens count more than once",
                self.chunks,
                tokens.len()
            ));
        }
        Ok(text)
    }
}
