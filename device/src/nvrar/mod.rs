//! NVRAR: all-reduce and all-gather between the GPUs of a group, each in one launch.
//!
//! Who writes: every rank stores into its peers' *regions* (peer memory, or pinned host memory); nobody
//! reads a peer's memory. Who polls: the thread with the same index on the receiving rank, in its own
//! region. Scope: system, relaxed; a message is its own signal ([`wire`]), so no fence lies on the way.
//!
//! When a slot may be reused: a call greets every rank of the group and ends only when every rank has
//! greeted back ([`call`]). So when a rank starts call n + 2, all ranks have ended call n, and what the
//! parity of n points to has been read and cleared everywhere.
//!
//! The layers: [`wire`] (formats), [`element`] (dtypes), [`watch`] (limits and failures), [`call`] (one
//! call seen from one thread), [`schedule`] (who with whom), the phases [`reduce`], [`put`] and
//! [`broadcast`], [`rows`] and the sum over one ([`letters`]), and the kernels [`one_shot`], [`fused`], the same with
//! residual and RMSNorm ([`norm`], [`fused_norm`]), and [`gather`]. With the feature `nvshmem`, the module of
//! that name has kernels whose messages between nodes are NVSHMEM's puts.

pub mod broadcast;
pub mod call;
pub mod element;
pub mod fused;
pub mod fused_norm;
pub mod gather;
pub mod letters;
pub mod norm;
#[cfg(feature = "nvshmem")]
pub mod nvshmem;
pub mod one_shot;
pub mod put;
pub mod reduce;
pub mod rows;
pub mod schedule;
pub mod tensor;
pub mod watch;
pub mod wire;
