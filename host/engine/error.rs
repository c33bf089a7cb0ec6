//! Why a model does not run on a GPU.

use crate::comm::{CommError, Shape};
use crate::driver::GpuError;
use crate::kernels::UnsupportedShape;

/// The engine cannot load or run a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// Ranks without a GPU.
    #[error(
        "--tp {tp} needs {tp} GPUs, but this machine has {found}: use --tp {found} or less, or --device cpu"
    )]
    TooFewGpus {
        /// The number of ranks.
        tp: usize,
        /// The number of GPUs.
        found: usize,
    },
    /// Two GPUs without a path.
    #[error(
        "{device} cannot address the memory of {peer}: use --peer-memory host-staged, which is slow, fewer ranks, or \
         --device cpu"
    )]
    NoPath {
        /// A GPU.
        device: String,
        /// Its peer.
        peer: String,
    },
    /// A layout of other ranks than the plan's.
    #[error("topology {shape} has {} ranks, but the plan is for {tp}", shape.world())]
    OtherShape {
        /// The layout.
        shape: Shape,
        /// The plan's ranks.
        tp: usize,
    },
    /// Weights, working memory and KV cache do not fit.
    #[error(
        "{device} has {} of {} free, but {} are needed: {} of weights, {} of working memory and {} of KV cache for \
         {kv_tokens} tokens; use a smaller model, a smaller KV cache, or --device cpu",
        gib(*free_bytes), gib(*total_bytes), gib(weight_bytes + work_bytes + kv_bytes),
        gib(*weight_bytes), gib(*work_bytes), gib(*kv_bytes)
    )]
    OutOfMemory {
        /// The device.
        device: String,
        /// What is free.
        free_bytes: u64,
        /// What the device has.
        total_bytes: u64,
        /// Weights.
        weight_bytes: u64,
        /// Activations, logits and scratch.
        work_bytes: u64,
        /// KV cache.
        kv_bytes: u64,
        /// Tokens that this KV cache would hold.
        kv_tokens: usize,
    },
    /// No page of the KV cache is left.
    #[error(
        "the KV cache is full: sequence {sequence} needs {needed} more pages of {page_size} tokens, {free} of {total} \
         are free; free a sequence, shorten the prompt, or give the KV cache more tokens"
    )]
    KvCacheFull {
        /// The sequence that grows.
        sequence: usize,
        /// Pages it needs.
        needed: usize,
        /// Pages that are left.
        free: usize,
        /// Pages in all.
        total: usize,
        /// Tokens of a page.
        page_size: usize,
    },
    /// The model has a shape for which there is no kernel.
    #[error(transparent)]
    Shape(#[from] UnsupportedShape),
    /// The GPU failed.
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

impl EngineError {
    /// What a refused group of GPUs means to those who asked for ranks; none if it says that itself.
    pub(crate) fn of_group(error: &CommError) -> Option<Self> {
        match error {
            CommError::Gpu(GpuError::NoPeerAccess { device, peer }) => {
                Some(Self::NoPath { device: device.clone(), peer: peer.clone() })
            }
            _ => None,
        }
    }
}

fn gib(bytes: u64) -> String {
    const GIB: f64 = (1u64 << 30) as f64;
    format!("{:.2} GiB", bytes as f64 / GIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_without_a_path_get_the_way_out() {
        let refused = GpuError::NoPeerAccess { device: "cuda:0 (A)".into(), peer: "cuda:1 (A)".into() };
        let error = EngineError::of_group(&CommError::Gpu(refused)).unwrap().to_string();
        assert!(
            error.starts_with("cuda:0 (A) cannot address the memory of cuda:1 (A): use --peer-memory"),
            "{error}"
        );
        assert_eq!(EngineError::of_group(&CommError::ForeignBuffer), None);
    }

    #[test]
    fn out_of_memory_adds_up() {
        let error = EngineError::OutOfMemory {
            device: "cuda:0 (Stub)".into(),
            free_bytes: 10 << 30,
            total_bytes: 16 << 30,
            weight_bytes: 15 << 30,
            work_bytes: 1 << 29,
            kv_bytes: 1 << 30,
            kv_tokens: 8192,
        };
        assert_eq!(
            error.to_string(),
            "cuda:0 (Stub) has 10.00 GiB of 16.00 GiB free, but 16.50 GiB are needed: 15.00 GiB of weights, 0.50 GiB \
             of working memory and 1.00 GiB of KV cache for 8192 tokens; use a smaller model, a smaller KV cache, or \
             --device cpu"
        );
    }
}
