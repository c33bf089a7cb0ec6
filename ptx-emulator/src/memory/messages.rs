//! Messages: what a network writes for a thread, when it likes.
//!
//! A message is an agent of no device: it needs no peer access, and outlives the grid of its sender. It comes after
//! what its sender did before it was posted. What arrives are relaxed stores of system scope that carry no more than two
//! things: what precedes the sender's grid, as stores of kernels do, and that the bytes which have arrived so far were
//! read from their source. A fence of the sender in its own grid is not carried.

use super::{Access, BlockSpec, Clock, Memory, Order, Result, Scope, Site, Thread, Width};

impl Memory {
    /// A message that `sender` posts now.
    pub fn begin_message(&mut self, sender: Thread) -> Thread {
        let grid = self.blocks.begin_grid(None);
        if self.is_ordered() {
            self.causality.begin_grid(None, &Clock::default());
            self.causality.begin_message(grid, sender);
        }
        let block = self.blocks.begin_block(&BlockSpec { grid, index: 0, n_threads: 1, shared_bytes: 0 });
        Thread::message(block)
    }

    /// The rest of the message comes after what `clock` has, for its reader as well: the end of messages before a
    /// fence between them.
    pub fn order_message(&mut self, message: Thread, clock: &Clock) {
        if self.is_ordered() {
            self.causality.order_message(message, clock);
        }
    }

    /// A unit of a message arrives: `width` at `to`, aligned to it, is now what is read `from`, which may have any
    /// alignment. The read is a plain one; faults name the instruction at `site`.
    ///
    /// # Errors
    /// Any [`Fault`](super::Fault) about addresses, or [`Fault::Race`](super::Fault::Race).
    pub fn forward(&mut self, message: Thread, site: Site, from: u64, to: u64, width: Width) -> Result<()> {
        let mut bytes = [0; 8];
        let length = width.bytes() as usize;
        self.read_by(&Access::weak(message, site), from, &mut bytes[..length])?;
        if self.is_ordered() {
            self.causality.has_read(message);
        }
        let access = Access { thread: message, site, order: Order::Relaxed, scope: Scope::Sys };
        self.store(&access, to, width, u64::from_le_bytes(bytes))
    }

    /// All of the message has arrived; whoever acquires the clock comes after that.
    pub fn end_message(&mut self, message: Thread) -> Clock {
        let grid = self.block(message.block).grid;
        self.end_block(message.block);
        self.end_grid(grid)
    }
}
