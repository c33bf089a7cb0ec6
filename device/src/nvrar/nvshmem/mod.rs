//! NVRAR where nodes are joined by NVSHMEM: messages in a node are direct stores as elsewhere, messages between
//! nodes are puts, over whatever NVSHMEM has between the two.
//!
//! Who writes: workers write what goes to another node to the rank's own *staging area*, laid out like a region,
//! and the block's [`courier`]s put it from there into the peer's region. Who polls: the peer's threads, in their
//! own region, as if it had been stored there. All of it travels as [`Words`](super::wire::Words), so that 4 bytes
//! arriving whole are enough; greetings are cells of 8.
//!
//! When staging may be reused: a message that its reader has taken was read from staging before. A call takes all
//! messages it is sent and ends only when every rank has greeted; so when a rank starts call n + 2, all ranks have
//! ended call n, and what it staged then (greetings included) has long been read. No put is waited for. A launch is
//! one pass: within a launch there is no reuse.
//!
//! What is assumed that neither PTX nor NVSHMEM promises: an aligned word of 4 bytes, and a cell of 8, of a put
//! arrives whole; a put that was delivered shows in a relaxed load of system scope, without any call to NVSHMEM;
//! and puts make progress without one ([`nvshmem_quiet`] is never called).
//!
//! [`nvshmem_quiet`]: https://docs.nvidia.com/nvshmem/api/gen/api/ordering.html

pub mod all_gather;
pub mod all_reduce;
pub mod courier;
