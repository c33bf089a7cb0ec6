//! The plan: per block, whether attention is synchronised, in what order heads are dealt to ranks, and
//! which tensors replace the model's own. As a file it is versioned JSON; `docs/spd-plan.md` shows one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::file;
use super::replacement::ReplacementFile;
use crate::model::sharding::ShardingError;
use crate::model::{Config, ModelError, TensorSource};

/// What one block does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockPlan {
    /// Whether the all-reduce behind attention takes place.
    pub sync_attention: bool,
    /// The order in which query heads are dealt to ranks: a permutation of `0..n_heads`. None: as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<Vec<usize>>,
    /// A safetensors file, relative to the plan, with tensors that replace the block's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replacement: Option<PathBuf>,
}

impl Default for BlockPlan {
    /// A block as in plain tensor parallelism.
    fn default() -> Self {
        Self { sync_attention: true, heads: None, replacement: None }
    }
}

/// A plan for a model split over a number of ranks, checked against the model.
#[derive(Debug, Clone)]
pub struct Plan {
    tp: usize,
    blocks: Vec<BlockPlan>,
    /// The replacement files by the name that the blocks give them.
    replacements: HashMap<PathBuf, Arc<ReplacementFile>>,
}

/// The file's layout, version 1.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanFile {
    format: String,
    version: u32,
    /// [`crate::model::TensorSource::fingerprint`] of the model.
    model: String,
    tp: usize,
    blocks: Vec<BlockPlan>,
}

const FORMAT: &str = "fewsync-spd-plan";
const VERSION: u32 = 1;

/// Why a plan cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// `last:K` with K beyond the model.
    #[error("last:{k} asks for more blocks than the model has: choose K from 0 to {n_layers}")]
    TooManyBlocks {
        /// K.
        k: usize,
        /// The model's blocks.
        n_layers: usize,
    },
    /// The degree of tensor parallelism does not fit the model.
    #[error(transparent)]
    Sharding(#[from] ShardingError),
    /// The plan's file cannot be read or written.
    #[error("{}: cannot {action} the plan ({source}); {hint}", path.display())]
    Io {
        /// The plan.
        path: PathBuf,
        /// "read" or "write".
        action: &'static str,
        /// What to do.
        hint: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The plan's file is not a plan, or not for this model, degree or version.
    #[error("{}: {what}", path.display())]
    Unfit {
        /// The plan.
        path: PathBuf,
        /// What does not fit, and what to do.
        what: String,
    },
    /// A replacement file cannot be used.
    #[error(transparent)]
    Replacement(#[from] ModelError),
}

impl Plan {
    /// A plan made by the program. Whoever loads it checks it ([`Self::check`]); replacement tensors come
    /// only with a file ([`Self::read`]).
    pub fn new(tp: usize, blocks: Vec<BlockPlan>) -> Self {
        Self { tp, blocks, replacements: HashMap::new() }
    }

    /// Plain tensor parallelism.
    pub fn synchronised(tp: usize, n_layers: usize) -> Self {
        Self::new(tp, vec![BlockPlan::default(); n_layers])
    }

    /// One entry a block.
    pub fn blocks(&self) -> &[BlockPlan] {
        &self.blocks
    }

    /// The number of ranks that the plan is for.
    pub fn tp(&self) -> usize {
        self.tp
    }

    /// How many blocks skip the all-reduce behind attention.
    pub fn n_dropped(&self) -> usize {
        self.blocks.iter().filter(|b| !b.sync_attention).count()
    }

    /// The same plan with other entries: `change` gets each block's number and entry. What replaces tensors here stays
    /// at hand there.
    pub(crate) fn map_blocks(&self, change: impl Fn(usize, &BlockPlan) -> BlockPlan) -> Self {
        let blocks = self.blocks.iter().enumerate().map(|(layer, block)| change(layer, block)).collect();
        Self { tp: self.tp, blocks, replacements: self.replacements.clone() }
    }

    /// The file that replaces tensors of a block, if any.
    pub(crate) fn replacement(&self, layer: usize) -> Option<&Arc<ReplacementFile>> {
        self.replacements.get(self.blocks[layer].replacement.as_ref()?)
    }

    /// Reads a plan and checks it against the model and the number of ranks.
    pub fn read(
        path: &Path,
        config: &Config,
        source: &dyn TensorSource,
        tp: usize,
    ) -> Result<Self, PlanError> {
        let text = std::fs::read_to_string(path).map_err(|source| PlanError::Io {
            path: path.into(),
            action: "read",
            hint: "`fewsync spd plan` writes one",
            source,
        })?;
        Self::parse(&text, path, config, source, tp)
    }

    /// As [`Self::read`], of text that is at hand; `path` is where it says to come from.
    pub fn parse(
        text: &str,
        path: &Path,
        config: &Config,
        source: &dyn TensorSource,
        tp: usize,
    ) -> Result<Self, PlanError> {
        let unfit = |what: String| PlanError::Unfit { path: path.into(), what };
        let file: PlanFile = file::parse(text, "plan", FORMAT, VERSION).map_err(unfit)?;
        let fingerprint = source.fingerprint()?;
        if file.model != fingerprint {
            return Err(unfit(format!(
                "the plan is for another model ({}, this one is {fingerprint}): make a plan for this model",
                file.model
            )));
        }
        let mut plan = Self::new(file.tp, file.blocks);
        plan.check_layout(config, tp).map_err(unfit)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for name in plan.blocks.iter().filter_map(|block| block.replacement.clone()) {
            if let Entry::Vacant(vacant) = plan.replacements.entry(name) {
                let file = ReplacementFile::open(&folder.join(vacant.key()), config, tp)?;
                vacant.insert(Arc::new(file));
            }
        }
        plan.check_replacements().and_then(|()| plan.check_made_for(&fingerprint)).map_err(unfit)?;
        Ok(plan)
    }

    /// Checks the plan against a model on `tp` ranks: number of ranks and blocks, head orders, and that
    /// every replacement is at hand.
    pub fn check(&self, config: &Config, tp: usize) -> Result<(), PlanError> {
        let unfit = |what| PlanError::Unfit { path: "plan".into(), what };
        self.check_layout(config, tp).and_then(|()| self.check_replacements()).map_err(unfit)
    }

    /// What tells the plan from others: its ranks and blocks, and the ends of the tensors that replace the model's.
    #[cfg(feature = "cli")]
    pub(crate) fn fingerprint(&self) -> String {
        let mut fingerprint = crate::model::Fingerprint::of("fewsync-plan-1");
        fingerprint.field(&self.tp.to_le_bytes());
        fingerprint.field(&serde_json::to_vec(&self.blocks).expect("blocks are plain numbers and names"));
        (0..self.blocks.len())
            .filter_map(|layer| self.replacement(layer))
            .for_each(|file| file.add_to(&mut fingerprint));
        fingerprint.finish()
    }

    fn check_layout(&self, config: &Config, tp: usize) -> Result<(), String> {
        if self.tp != tp {
            return Err(format!("the plan is for {} ranks, not {tp}: run with --tp {}", self.tp, self.tp));
        }
        let (have, want) = (self.blocks.len(), config.n_layers);
        if have != want {
            return Err(format!("the plan has {have} blocks, but the model has {want}: make the plan anew"));
        }
        for (layer, block) in self.blocks.iter().enumerate() {
            if let Some(heads) = &block.heads {
                check_permutation(heads, config.n_heads).map_err(|what| format!("block {layer}: {what}"))?;
            }
        }
        Ok(())
    }

    fn check_replacements(&self) -> Result<(), String> {
        for (layer, block) in self.blocks.iter().enumerate() {
            let Some(name) = &block.replacement else { continue };
            let Some(file) = self.replacements.get(name) else {
                let name = name.display();
                return Err(format!("block {layer}: {name} was not opened: read the plan from its file"));
            };
            if !file.covers(layer) {
                return Err(format!("block {layer}: {} replaces nothing in it", name.display()));
            }
        }
        Ok(())
    }

    /// Tensors fitted for one model, number of ranks and order of heads are wrong under any other.
    fn check_made_for(&self, model: &str) -> Result<(), String> {
        for (layer, block) in self.blocks.iter().enumerate() {
            let made_for = self.replacement(layer).and_then(|file| file.made_for.as_ref());
            let (Some(made_for), Some(name)) = (made_for, &block.replacement) else { continue };
            let wrong = |what: String| format!("block {layer}: {} {what}", name.display());
            made_for.check(model, self.tp, block.heads.as_deref()).map_err(wrong)?;
            if block.sync_attention {
                let kept = "was distilled for a dropped sync point, and the plan keeps it: drop it, or name no replacement";
                return Err(wrong(kept.to_owned()));
            }
        }
        Ok(())
    }

    /// Writes the plan, whole or not at all.
    pub fn write(&self, path: &Path, fingerprint: &str) -> Result<(), PlanError> {
        let content = PlanFile {
            format: FORMAT.into(),
            version: VERSION,
            model: fingerprint.into(),
            tp: self.tp,
            blocks: self.blocks.clone(),
        };
        let hint = "give a path in a folder that exists and is writable";
        let io = |source| PlanError::Io { path: path.into(), action: "write", hint, source };
        file::write(path, &content).map_err(io)
    }
}

fn check_permutation(heads: &[usize], n_heads: usize) -> Result<(), String> {
    let mut seen = vec![false; n_heads];
    for &head in heads {
        match seen.get_mut(head) {
            Some(seen) if !*seen => *seen = true,
            Some(_) => return Err(format!("head {head} is named twice in 'heads': name every head once")),
            None => {
                return Err(format!(
                    "'heads' names head {head}, but the model has {n_heads}: name 0 to {} once each",
                    n_heads - 1
                ));
            }
        }
    }
    match seen.iter().position(|seen| !seen) {
        Some(head) => Err(format!("head {head} is missing from 'heads': name every head once")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use ::safetensors::tensor::TensorView;
    use ::safetensors::{self, Dtype};

    use super::*;
    use crate::model::{Checkpoint, shapes};

    #[test]
    fn a_plan_that_does_not_fit_is_refused_with_the_reason() {
        let config = shapes::named("tiny").unwrap();
        let with = |block: BlockPlan| Plan::new(2, vec![BlockPlan::default(), block]);
        let heads = |heads: &[usize]| with(BlockPlan { heads: Some(heads.to_vec()), ..BlockPlan::default() });
        let replaced = with(BlockPlan { replacement: Some("b.safetensors".into()), ..BlockPlan::default() });
        for (plan, reason) in [
            (Plan::synchronised(3, 2), "for 3 ranks, not 2"),
            (Plan::synchronised(2, 1), "has 1 blocks, but the model has 2"),
            (Plan::synchronised(2, 0), "has 0 blocks"),
            (heads(&[0, 0, 0, 0]), "block 1: head 0 is named twice"),
            (heads(&[0, 1, 2]), "block 1: head 3 is missing"),
            (replaced, "block 1: b.safetensors was not opened"),
        ] {
            let message = plan.check(&config, 2).unwrap_err().to_string();
            assert!(message.contains(reason), "{message}");
        }
        heads(&[3, 1, 0, 2]).check(&config, 2).unwrap();
    }

    #[test]
    fn the_fingerprint_tells_plans_apart() {
        let model = Checkpoint::random("random:tiny").unwrap();
        let source = &*model.source;
        let folder = tempfile::tempdir().unwrap();
        // A plan whose block 1 has these heads, and a norm of this value.
        let digest = |heads: &str, norm: f32| {
            let bytes: Vec<u8> =
                vec![norm; model.config.hidden].iter().flat_map(|x| x.to_le_bytes()).collect();
            let view = TensorView::new(Dtype::F32, vec![model.config.hidden], &bytes).unwrap();
            let name = "model.layers.1.input_layernorm.weight";
            safetensors::serialize_to_file([(name, view)], None, &folder.path().join("r.safetensors"))
                .unwrap();
            let text = format!(
                r#"{{"format": "{FORMAT}", "version": {VERSION}, "model": "{}", "tp": 2, "blocks": [
                    {{"sync_attention": true}},
                    {{"sync_attention": false, "heads": {heads}, "replacement": "r.safetensors"}}]}}"#,
                source.fingerprint().unwrap(),
            );
            let path = folder.path().join("plan.json");
            Plan::parse(&text, &path, &model.config, source, 2).unwrap().fingerprint()
        };
        let base = digest("[0, 1, 2, 3]", 1.0);
        assert_eq!(base, digest("[0, 1, 2, 3]", 1.0));
        assert_ne!(base, digest("[1, 0, 2, 3]", 1.0));
        assert_ne!(base, digest("[0, 1, 2, 3]", 1.5));
        assert_ne!(Plan::synchronised(2, 2).fingerprint(), Plan::synchronised(3, 2).fingerprint());
    }
}
