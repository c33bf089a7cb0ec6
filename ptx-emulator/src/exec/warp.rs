//! What lanes of a warp do together: `shfl`, `vote`, `match`, `redux`, `activemask`, `elect`, `bar.warp.sync`.
//!
//! The warp brings the members of a `.sync` instruction together before it is executed, so all of them are
//! active here.

use super::context::{Cause, Context, Done, lanes};
use super::rows::{Class, LANES, Row, Slot};
use crate::program::{Decoded, Line, Op, Typed};
use crate::text::{Operand, ScalarType as T};

pub(crate) const NAMES: &[&str] = &["shfl", "vote", "match", "redux", "activemask", "elect"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Shuffle(Shuffle),
    VoteAll,
    VoteAny,
    VoteUniform,
    Ballot,
    MatchAny,
    MatchAll,
    Reduce(Reduction),
    ActiveMask,
    Elect,
    /// `bar.warp.sync`
    Barrier,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reduction {
    Add,
    And,
    Or,
    Xor,
    MinSigned,
    MaxSigned,
    MinUnsigned,
    MaxUnsigned,
}

/// A warp-wide instruction.
#[derive(Debug, Clone)]
pub(crate) struct Collective {
    pub(crate) kind: Kind,
    d: Typed,
    /// The predicate beside the destination.
    p: Slot,
    a: Typed,
    negated: bool,
    b: Slot,
    c: Slot,
    /// The member mask; none for `activemask`.
    pub(crate) members: Slot,
}

const NOTHING: Typed = Typed { slot: Slot::NONE, class: Class::Word };

impl Collective {
    fn new(kind: Kind) -> Self {
        let none = Slot::NONE;
        Self { kind, d: NOTHING, p: none, a: NOTHING, negated: false, b: none, c: none, members: none }
    }

    /// `bar.warp.sync mask`
    pub(crate) fn barrier(members: Slot) -> Self {
        Self { members, ..Self::new(Kind::Barrier) }
    }
}

pub(crate) fn decode(line: &mut Line<'_, '_>) -> Decoded<Op> {
    if line.name == "activemask" {
        line.ty()?;
        line.exactly(1)?;
        let d = Typed { slot: line.destination(0, T::B32)?, class: Class::Word };
        return Ok(Op::Warp(Box::new(Collective { d, ..Collective::new(Kind::ActiveMask) })));
    }
    if !line.flag("sync") {
        return line.refuse();
    }
    let op = match line.name {
        "shfl" => shuffle(line)?,
        "vote" => vote(line)?,
        "match" => matching(line)?,
        "redux" => reduce(line)?,
        _ => {
            line.exactly(2)?;
            let (d, p) = destinations(line, T::B32)?;
            Collective { d, p, members: line.source(1, T::B32)?, ..Collective::new(Kind::Elect) }
        }
    };
    Ok(Op::Warp(Box::new(op)))
}

/// `d` or `d|p`.
fn destinations(line: &mut Line<'_, '_>, ty: T) -> Decoded<(Typed, Slot)> {
    let (d, p) = match line.operand(0)? {
        Operand::Pair(pair) => (line.destination_in(&pair.0, ty)?, line.destination_in(&pair.1, T::Pred)?),
        operand => (line.destination_in(operand, ty)?, Slot::NONE),
    };
    Ok((Typed { slot: d, class: Class::Word }, p))
}

fn shuffle(line: &mut Line<'_, '_>) -> Decoded<Collective> {
    let kinds =
        [("up", Shuffle::Up), ("down", Shuffle::Down), ("bfly", Shuffle::Butterfly), ("idx", Shuffle::Index)];
    let Some(kind) = line.choice(&kinds) else { return line.refuse() };
    if line.ty()? != T::B32 {
        return line.refuse();
    }
    line.exactly(5)?;
    let (d, p) = destinations(line, T::B32)?;
    let a = Typed { slot: line.source(1, T::B32)?, class: Class::Word };
    let (b, c) = (line.source(2, T::B32)?, line.source(3, T::B32)?);
    let members = line.source(4, T::B32)?;
    Ok(Collective { d, p, a, b, c, members, ..Collective::new(Kind::Shuffle(kind)) })
}

fn vote(line: &mut Line<'_, '_>) -> Decoded<Collective> {
    let kinds = [
        ("all", Kind::VoteAll),
        ("any", Kind::VoteAny),
        ("uni", Kind::VoteUniform),
        ("ballot", Kind::Ballot),
    ];
    let Some(kind) = line.choice(&kinds) else { return line.refuse() };
    let ty = line.ty()?;
    if (ty == T::B32) != (kind == Kind::Ballot) {
        return line.refuse();
    }
    line.exactly(3)?;
    let d = Typed { slot: line.destination(0, ty)?, class: crate::program::class_of(ty) };
    let (slot, negated) = line.predicate(1)?;
    let a = Typed { slot, class: Class::Pred };
    Ok(Collective { d, a, negated, members: line.source(2, T::B32)?, ..Collective::new(kind) })
}

fn matching(line: &mut Line<'_, '_>) -> Decoded<Collective> {
    let Some(kind) = line.choice(&[("any", Kind::MatchAny), ("all", Kind::MatchAll)]) else {
        return line.refuse();
    };
    let ty = line.ty()?;
    if !matches!(ty, T::B32 | T::B64) {
        return line.refuse();
    }
    line.exactly(3)?;
    let (d, p) = destinations(line, T::B32)?;
    let a = Typed { slot: line.source(1, ty)?, class: crate::program::class_of(ty) };
    Ok(Collective { d, p, a, members: line.source(2, T::B32)?, ..Collective::new(kind) })
}

fn reduce(line: &mut Line<'_, '_>) -> Decoded<Collective> {
    let names = ["add", "and", "or", "xor", "min", "max"].map(|name| (name, name));
    let Some(name) = line.choice(&names) else { return line.refuse() };
    let ty = line.ty()?;
    let kind = match (name, ty) {
        ("add", T::U32 | T::S32) => Reduction::Add,
        ("and", T::B32) => Reduction::And,
        ("or", T::B32) => Reduction::Or,
        ("xor", T::B32) => Reduction::Xor,
        ("min", T::S32) => Reduction::MinSigned,
        ("max", T::S32) => Reduction::MaxSigned,
        ("min", T::U32) => Reduction::MinUnsigned,
        ("max", T::U32) => Reduction::MaxUnsigned,
        _ => return line.refuse(),
    };
    line.exactly(3)?;
    let d = Typed { slot: line.destination(0, ty)?, class: Class::Word };
    let a = Typed { slot: line.source(1, ty)?, class: Class::Word };
    Ok(Collective { d, a, members: line.source(2, T::B32)?, ..Collective::new(Kind::Reduce(kind)) })
}

pub(crate) fn execute(context: &mut Context<'_>, op: &Collective) -> Done {
    let active = context.rows.mask;
    if op.members != Slot::NONE {
        let members = context.rows.word(op.members);
        if let Some(lane) = context.active().find(|&lane| members[lane] >> lane & 1 == 0) {
            return Err(Cause::NotMember { lane: lane as u32, members: members[lane] });
        }
    }
    match op.kind {
        Kind::Shuffle(kind) => shuffle_lanes(context, op, kind),
        Kind::VoteAll | Kind::VoteAny | Kind::VoteUniform | Kind::Ballot => {
            let bits = context.rows.pred(op.a.slot) ^ if op.negated { u32::MAX } else { 0 };
            let bits = bits & active;
            let answer = match op.kind {
                Kind::VoteAll => bits == active,
                Kind::VoteAny => bits != 0,
                _ => bits == active || bits == 0,
            };
            if op.kind == Kind::Ballot {
                context.rows.put_word(op.d.slot, &[bits; LANES]);
            } else {
                context.rows.put_pred(op.d.slot, if answer { u32::MAX } else { 0 });
            }
        }
        Kind::MatchAny => {
            let a = context.rows.wide(op.a.slot, op.a.class);
            let equal = |lane: usize| {
                lanes(active).fold(0, |bits, other| bits | u32::from(a[other] == a[lane]) << other)
            };
            context.rows.put_word(op.d.slot, &std::array::from_fn(equal));
        }
        Kind::MatchAll => {
            let a = context.rows.wide(op.a.slot, op.a.class);
            let same = lanes(active).all(|lane| a[lane] == a[active.trailing_zeros() as usize]);
            context.rows.put_word(op.d.slot, &[if same { active } else { 0 }; LANES]);
            context.rows.put_pred(op.p, if same { u32::MAX } else { 0 });
        }
        Kind::Reduce(kind) => reduce_lanes(context, op, kind),
        Kind::ActiveMask => context.rows.put_word(op.d.slot, &[active; LANES]),
        Kind::Elect => {
            let leader = active.trailing_zeros();
            context.rows.put_word(op.d.slot, &[leader; LANES]);
            context.rows.put_pred(op.p, 1 << leader);
        }
        Kind::Barrier => {
            let block = context.first.block;
            let first = context.first.index;
            context.memory.barrier(block, lanes(active).map(move |lane| first + lane as u32));
        }
    }
    Ok(())
}

/// What a lane gets from one that does not take part: PTX leaves it open. Neither what is often left there, nor a
/// number as a float.
const UNDEFINED: u32 = 0xFFFF_DEAD;

/// PTX ISA, shfl.sync: the bounds in `c` divide the warp into segments; a lane whose source is outside of its
/// segment keeps its own value.
fn shuffle_lanes(context: &mut Context<'_>, op: &Collective, kind: Shuffle) {
    let a = *context.rows.word(op.a.slot);
    let (b, c) = (*context.rows.word(op.b), *context.rows.word(op.c));
    let (mut out, mut inside) = (a, 0u32);
    for lane in 0..LANES {
        let segment = c[lane] >> 8 & 31;
        let clamp = c[lane] & 31;
        let own = lane as u32;
        let most = own & segment | clamp & !segment;
        let least = own & segment;
        let shift = b[lane] & 31;
        let (source, fits) = match kind {
            Shuffle::Up => (own.wrapping_sub(shift), own as i32 - shift as i32 >= most as i32),
            Shuffle::Down => (own + shift, own + shift <= most),
            Shuffle::Butterfly => (own ^ shift, own ^ shift <= most),
            Shuffle::Index => (least | shift & !segment, least | shift & !segment <= most),
        };
        let source = if fits { source & 31 } else { own };
        let takes_part = source == own || context.rows.mask >> source & 1 != 0;
        out[lane] = if takes_part { a[source as usize] } else { UNDEFINED };
        inside |= u32::from(fits) << lane;
    }
    context.rows.put_word(op.d.slot, &out);
    context.rows.put_pred(op.p, inside);
}

fn reduce_lanes(context: &mut Context<'_>, op: &Collective, kind: Reduction) {
    let a: Row<u32> = *context.rows.word(op.a.slot);
    let combine = |x: u32, y: u32| match kind {
        Reduction::Add => x.wrapping_add(y),
        Reduction::And => x & y,
        Reduction::Or => x | y,
        Reduction::Xor => x ^ y,
        Reduction::MinSigned => (x as i32).min(y as i32) as u32,
        Reduction::MaxSigned => (x as i32).max(y as i32) as u32,
        Reduction::MinUnsigned => x.min(y),
        Reduction::MaxUnsigned => x.max(y),
    };
    let total = context.active().map(|lane| a[lane]).reduce(combine).unwrap_or(0);
    context.rows.put_word(op.d.slot, &[total; LANES]);
}
