//! `setmaxnreg`: registers that warps of a block hand to each other (PTX ISA, "setmaxnreg").
//!
//! A warp begins with those that the launch bounds leave each thread. `.dec` puts what it has beyond the number into the
//! block's pool; `.inc` takes from there and waits until there are enough. Registers here have no numbers, so a thread
//! that uses more than it has does not show: that is for the assembler to see to.

use super::context::{Cause, Context, Done};
use super::rows::LANES;
use super::warpgroup::Step;
use crate::program::{Decoded, Line, Op};

pub(crate) const NAMES: &[&str] = &["setmaxnreg"];

/// 32-bit registers of a multiprocessor, and the unit in which a thread has them.
const MULTIPROCESSOR_REGISTERS: u32 = 1 << 16;
const UNIT: u32 = 8;
/// The least and the most registers of a thread that can be asked for.
const LEAST: u32 = 24;
const MOST: u32 = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change {
    /// Registers of a thread from then on.
    count: u32,
    pub(crate) increases: bool,
}

pub(crate) fn decode(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let increases = line.choice(&[("inc", true), ("dec", false)]);
    let (true, Some(increases)) = (line.flag("sync") && line.flag("aligned") && line.flag("u32"), increases)
    else {
        return line.refuse();
    };
    line.exactly(1)?;
    match u32::try_from(line.literal(0)?) {
        Ok(count) if (LEAST..=MOST).contains(&count) && count.is_multiple_of(UNIT) => {
            Ok(Op::Registers(Change { count, increases }))
        }
        _ => line.refuse(),
    }
}

/// The registers of a block.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    /// Those that no warp has.
    free: u32,
    /// Of a thread, by warp; none where launch bounds do not say how many there are.
    warps: Option<Vec<u32>>,
}

impl Pool {
    /// Of a block of so many warps, of a kernel with these bounds: the most threads of a block, and the fewest blocks
    /// of a multiprocessor.
    pub(crate) fn new(warps: usize, max_threads: Option<[u32; 3]>, min_blocks: Option<u32>) -> Self {
        let per_thread = max_threads.zip(min_blocks).map(|(threads, blocks)| {
            let threads = threads.iter().product::<u32>().next_multiple_of(LANES as u32) * blocks.max(1);
            (MULTIPROCESSOR_REGISTERS / threads.max(1) / UNIT * UNIT).min(MOST)
        });
        Self { free: 0, warps: per_thread.map(|count| vec![count; warps]) }
    }

    /// Of a thread of each warp, and those that none has.
    pub(crate) fn state(&self, first_thread: u32) -> (u32, u32) {
        let warp = first_thread as usize / LANES;
        (self.warps.as_ref().map_or(0, |warps| warps[warp]), self.free)
    }

    /// A warp takes what it lacks; false if that is more than there is.
    pub(crate) fn take(&mut self, first_thread: u32, change: Change) -> bool {
        let Some(had) = self.warps.as_mut().and_then(|warps| warps.get_mut(first_thread as usize / LANES))
        else {
            return false;
        };
        let lacking = change.count.saturating_sub(*had) * LANES as u32;
        if lacking > self.free {
            return false;
        }
        self.free -= lacking;
        *had = change.count;
        true
    }
}

/// Gives registers back, or checks what is asked for; taking is [`Pool::take`].
pub(crate) fn execute(context: &mut Context<'_>, change: Change) -> Done {
    let first_thread = context.environment.first_thread;
    let step = Step { thread: context.thread(0), site: context.site, operands: None };
    context.asynchronous.products.groups.note(first_thread, step)?;
    let Some(warps) = &mut context.registers.warps else {
        return Err(Cause::Registers(
            "it may have no effect in a kernel without `.maxntid` and `.minnctapersm`",
        ));
    };
    let had = &mut warps[first_thread as usize / LANES];
    match change.increases {
        true if *had > change.count => Err(Cause::Registers("`.inc` to fewer registers than the warp has")),
        false if *had < change.count => Err(Cause::Registers("`.dec` to more registers than the warp has")),
        true => Ok(()),
        false => {
            context.registers.free += (*had - change.count) * LANES as u32;
            *had = change.count;
            *context.progress += 1;
            Ok(())
        }
    }
}
