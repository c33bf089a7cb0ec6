//! Control flow and pacing: `bra`, `brx.idx`, `ret`, `exit`, `trap`, `nanosleep`, `griddepcontrol`.

use crate::program::{Decoded, Line, NOWHERE, Op, Refusal};
use crate::text::{Operand, ScalarType as T};

pub(crate) const NAMES: &[&str] =
    &["bra", "brx", "ret", "exit", "trap", "brkpt", "nanosleep", "griddepcontrol", "pmevent"];

/// Programmatic dependent launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GridControl {
    /// Dependents may start once every block of this grid has said so or ended.
    LaunchDependents,
    /// Until the grids before this one have ended and what they wrote is visible.
    Wait,
}

pub(crate) fn decode(line: &mut Line<'_, '_>) -> Decoded<Op> {
    match line.name {
        "bra" => {
            line.flag("uni");
            line.exactly(1)?;
            let Operand::Name(name) = line.operand(0)? else { return line.refuse() };
            Ok(Op::Branch { target: line.builder.label(name)?, reconverge: NOWHERE })
        }
        "brx" => {
            line.flag("uni");
            if !line.flag("idx") {
                return line.refuse();
            }
            line.exactly(2)?;
            let index = line.source(0, T::U32)?;
            let Operand::Name(table) = line.operand(1)? else { return line.refuse() };
            let targets = line.builder.table(table)?.into();
            Ok(Op::BranchTable { index, targets, reconverge: NOWHERE })
        }
        "ret" => {
            line.flag("uni");
            line.exactly(0).map(|()| Op::Return)
        }
        "exit" => line.exactly(0).map(|()| Op::Exit),
        "trap" | "brkpt" => line.exactly(0).map(|()| Op::Trap),
        "pmevent" => line.literal(0).map(|_| Op::Nop),
        "nanosleep" => {
            line.ty()?;
            line.exactly(1)?;
            Ok(Op::Sleep(line.source(0, T::U32)?))
        }
        "griddepcontrol" => {
            line.exactly(0)?;
            let kinds = [("launch_dependents", GridControl::LaunchDependents), ("wait", GridControl::Wait)];
            line.choice(&kinds).map(Op::Grid).ok_or(Refusal::Form)
        }
        _ => line.refuse(),
    }
}
