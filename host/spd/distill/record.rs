//! The folder of a run: what it was asked for, how far it is, and what each block came to. Every file is written
//! whole or not at all, and the record last, so that it never speaks of what is not there.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::weights::Changed;
use super::{DistillError, Job, Options, block_file};
use crate::model::Storage;
use crate::spd::BlockPlan;

/// What one block came to. Errors are mean squared errors on held-out chunks relative to the mean square of the
/// block's output, averaged over tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockResult {
    /// The block.
    pub block: usize,
    /// The error with the model's own weights.
    pub zero_shot: f64,
    /// The error of the closed form, where it was asked for.
    pub closed_form: Option<f64>,
    /// The error of what was written.
    pub distilled: f64,
    /// Gradient steps behind it.
    pub steps: usize,
    /// Wall time of the block, its pass through the synchronised model included.
    pub seconds: f64,
}

/// All that decides the result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Asked {
    model: String,
    tp: usize,
    /// SHA-256 of the tokens.
    text: String,
    /// Blocks that are fitted.
    blocks: Vec<usize>,
    plan: Vec<BlockPlan>,
    options: Options,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    format: String,
    version: u32,
    asked: Asked,
    /// The first block that is not done; its input is on disk.
    next_block: usize,
    results: Vec<BlockResult>,
}

const FORMAT: &str = "fewsync-distill";
const VERSION: u32 = 1;

/// An open run.
pub(super) struct Run {
    folder: PathBuf,
    record: Record,
}

impl Run {
    /// Starts a run in `job.folder`, or takes up the one that is there.
    pub(super) fn open(job: &Job<'_>) -> Result<Self, DistillError> {
        let digest = Sha256::digest(bytemuck::cast_slice::<u32, u8>(job.tokens));
        let asked = Asked {
            model: job.source.fingerprint()?,
            tp: job.plan.tp(),
            text: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            blocks: job.blocks.to_vec(),
            plan: job.plan.blocks().to_vec(),
            options: job.options.clone(),
        };
        let folder = job.folder.to_path_buf();
        fs::create_dir_all(&folder).map_err(DistillError::io(&folder, "create"))?;
        let path = folder.join(RECORD);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let (format, version) = (FORMAT.into(), VERSION);
                let record = Record { format, version, asked, next_block: 0, results: Vec::new() };
                return Ok(Self { folder, record });
            }
            Err(e) => return Err(DistillError::io(&path, "read")(e)),
        };
        let refuse = |what: &str| Err(DistillError::Record { path: path.clone(), what: what.into() });
        match serde_json::from_str::<Record>(&text) {
            Ok(record) if record.format != FORMAT || record.version != VERSION => {
                refuse("it is no record of a distillation that this program reads")
            }
            Ok(record) if record.asked != asked => {
                refuse("it belongs to another run (model, plan, text, blocks or options differ)")
            }
            Ok(record) => Ok(Self { folder, record }),
            Err(e) => refuse(&format!("it is damaged ({e})")),
        }
    }

    pub(super) fn next_block(&self) -> usize {
        self.record.next_block
    }

    /// Where the input of a block is while the run is at it.
    pub(super) fn input(&self, layer: usize) -> PathBuf {
        self.folder.join(format!("input{layer}.f32"))
    }

    /// Where the attended heads of the block at hand are.
    pub(super) fn attended(&self) -> PathBuf {
        self.folder.join("attended.f32")
    }

    /// Writes the replacement tensors of a block.
    pub(super) fn save_block(&self, layer: usize, tensors: &[Changed]) -> Result<(), DistillError> {
        let path = self.folder.join(block_file(layer));
        let mut views = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let dtype = match tensor.storage {
                Storage::F32 => Dtype::F32,
                Storage::Bf16 => Dtype::BF16,
            };
            let view = TensorView::new(dtype, tensor.shape.clone(), &tensor.bytes);
            views.push((&tensor.name, view.expect("bytes were made for this shape")));
        }
        let bytes = safetensors::serialize(views, None).expect("a list of sound views serialises");
        self.write(&path, &bytes)
    }

    /// Notes that all blocks below `next_block` are done and removes what no later one needs.
    pub(super) fn advance(
        &mut self,
        next_block: usize,
        result: Option<BlockResult>,
    ) -> Result<(), DistillError> {
        self.record.next_block = next_block;
        self.record.results.extend(result);
        let text = serde_json::to_vec_pretty(&self.record).expect("a record serialises");
        self.write(&self.folder.join(RECORD), &text)?;
        self.remove(&self.input(next_block - 1))
    }

    /// Removes what only an unfinished run needs.
    pub(super) fn finish(self) -> Result<Vec<BlockResult>, DistillError> {
        self.remove(&self.attended())?;
        self.remove(&self.input(self.record.next_block))?;
        Ok(self.record.results)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), DistillError> {
        let write = || {
            let mut file = crate::spd::plan::temporary_in(&self.folder)?;
            file.write_all(bytes)?;
            file.persist(path)?;
            Ok(())
        };
        write().map_err(DistillError::io(path, "write"))
    }

    fn remove(&self, path: &Path) -> Result<(), DistillError> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(DistillError::io(path, "remove")(e)),
            _ => Ok(()),
        }
    }
}

/// The record's name in its folder.
const RECORD: &str = "distill.json";
