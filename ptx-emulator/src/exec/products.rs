//! Products of `wgmma` in flight, and the registers that they use until their group is waited for.

use std::collections::{BTreeMap, VecDeque};

use super::context::{Cause, Done};
use super::descriptor::{Descriptor, Major};
use super::rows::Slot;
use super::warpgroup::Warpgroups;
use super::wgmma::Multiply;
use crate::memory::{Moment, Site, Thread};

/// A product that has been issued.
#[derive(Debug)]
pub(super) struct Product {
    /// Who reads.
    pub(super) agent: Thread,
    pub(super) site: Site,
    pub(super) op: Box<Multiply>,
    /// None where it is in registers.
    pub(super) a: Option<(Descriptor, Major)>,
    pub(super) b: (Descriptor, Major),
    pub(super) adds: bool,
}

/// Products of one warp.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    pub(super) open: Vec<Product>,
    pub(super) closed: VecDeque<Vec<Product>>,
    /// The agent of the products that were issued since a moment.
    pub(super) agent: Option<(Thread, Moment)>,
    /// The accumulators of all of them, and how many products those are of.
    held: Vec<(Box<[Slot]>, usize)>,
    /// The registers of A of all of them, and of how many products each.
    lent: BTreeMap<u32, usize>,
    /// `wgmma.fence` has come since the accumulators were last the warp's.
    pub(super) fenced: bool,
}

impl InFlight {
    /// One more product works on accumulators and reads A from registers; an error if those are in part others'.
    pub(super) fn hold(&mut self, op: &Multiply) -> Done {
        let is_held =
            |slot: &Slot| op.d.contains(slot) || self.held.iter().any(|(held, _)| held.contains(slot));
        if op.fragment().iter().any(is_held) {
            return Err(Cause::Wgmma("registers of A are its accumulators, or those of a product in flight"));
        }
        if op.d.iter().any(|slot| self.lent.contains_key(&slot.0)) {
            return Err(Cause::Wgmma("some of its accumulators are registers of A of a product in flight"));
        }
        if let Some((_, products)) = self.held.iter_mut().find(|(held, _)| *held == op.d) {
            *products += 1;
        } else if self.held.iter().any(|(held, _)| held.iter().any(|slot| op.d.contains(slot))) {
            return Err(Cause::Wgmma(
                "some of its accumulators are those of a product of another shape in flight",
            ));
        } else {
            self.held.push((op.d.clone(), 1));
        }
        for slot in op.fragment() {
            *self.lent.entry(slot.0).or_default() += 1;
        }
        Ok(())
    }

    /// Whether a product in flight writes or reads a register.
    fn uses(&self, slot: Slot) -> bool {
        self.lent.contains_key(&slot.0) || self.held.iter().any(|(held, _)| held.contains(&slot))
    }

    /// The oldest group, if there are more than `left`; its accumulators are no longer held.
    pub(super) fn take_beyond(&mut self, left: u32) -> Option<Vec<Product>> {
        let group = if self.closed.len() > left as usize { self.closed.pop_front() } else { None };
        for product in group.iter().flatten() {
            if let Some((_, products)) = self.held.iter_mut().find(|(held, _)| **held == *product.op.d) {
                *products -= 1;
            }
            for slot in product.op.fragment() {
                self.lent.entry(slot.0).and_modify(|products| *products -= 1);
            }
        }
        self.held.retain(|(_, products)| *products > 0);
        self.lent.retain(|_, products| *products > 0);
        self.fenced &= !self.held.is_empty();
        group
    }
}

/// Products of a block.
#[derive(Debug, Default)]
pub(crate) struct Products {
    /// By the first thread of the warp.
    pub(super) warps: BTreeMap<u32, InFlight>,
    pub(super) groups: Warpgroups,
}

impl Products {
    /// Whether a register of a warp is the accumulator of a product in flight.
    pub(crate) fn holds(&self, first_thread: u32, slot: Slot) -> bool {
        let warp = self.warps.get(&first_thread);
        warp.is_some_and(|warp| warp.held.iter().any(|(held, _)| held.contains(&slot)))
    }

    /// Whether it is that, or holds elements of A for one.
    pub(crate) fn uses(&self, first_thread: u32, slot: Slot) -> bool {
        self.warps.get(&first_thread).is_some_and(|warp| warp.uses(slot))
    }

    /// What only some warps of a group have executed: lane 0 of one, and the instruction.
    pub(super) fn out_of_step(&self) -> Option<(Thread, Site)> {
        self.groups.unfinished().map(|step| (step.thread, step.site))
    }

    /// Whether a warp has products in flight.
    pub(crate) fn is_busy(&self, first_thread: u32) -> bool {
        self.warps.get(&first_thread).is_some_and(|warp| !warp.held.is_empty())
    }
}
