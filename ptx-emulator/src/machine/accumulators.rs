//! Accumulators and registers of A that tensor cores still work on (`wgmma`): who touches them too early.

use super::shared::{Failure, Shared};
use super::warp::{Fragment, Warp};
use crate::exec::Cause;
use crate::exec::rows::{Class, Mask};
use crate::exec::wgmma::Operation;
use crate::program::{Op, Typed};

impl Warp {
    /// Refuses an instruction of `fragment` that reads or writes registers of products in flight, and a product that adds to
    /// accumulators which nobody has written.
    pub(super) fn check_accumulators(
        &self,
        fragment: &Fragment,
        active: Mask,
        shared: &Shared<'_>,
    ) -> Result<(), Failure> {
        let pc = fragment.pc;
        let op = &shared.program.code[pc as usize].op;
        let failure = |cause| Err(Failure { cause, pc, mask: active });
        let products = &shared.asynchronous.products;
        if let Op::Wgmma(Operation::Multiply(op)) = op {
            let (slot, negated) = op.adds();
            let base = fragment.frame().registers;
            let adds = if slot.is_register() {
                self.registers.preds[(base.preds + slot.0) as usize] != 0
            } else {
                // A literal: true unless it is negated.
                true
            };
            let written = |slot: &crate::exec::rows::Slot| {
                let index = (base.words + slot.0) as usize;
                active & !self.registers.written[Class::Word as usize][index] == 0
                    || products.holds(self.first_thread, *slot)
            };
            if adds != negated && !op.accumulators().iter().all(written) {
                return failure(Cause::Wgmma("it adds to accumulators that were not written"));
            }
            return Ok(());
        }
        if !products.is_busy(self.first_thread) {
            return Ok(());
        }
        if matches!(op, Op::Call(_) | Op::Return) {
            return failure(Cause::Wgmma("calls with products in flight are not supported"));
        }
        let uses = &shared.program.uses[pc as usize];
        let is_used =
            |typed: &Typed| typed.class == Class::Word && products.uses(self.first_thread, typed.slot);
        if uses.reads.iter().chain(&uses.writes).any(is_used) {
            return failure(Cause::Wgmma(
                "it touches accumulators, or registers of A, before `wgmma.wait_group`",
            ));
        }
        Ok(())
    }
}
