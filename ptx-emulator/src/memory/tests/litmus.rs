//! Litmus tests: outcomes that PTX allows are seen, those that it forbids are not.

use Order::{AcqRel, Acquire, Relaxed, Release, Sc, Weak};
use Scope::{Cta, Gpu, Sys};

use super::machine::{Loc, Machine, Op, Place, X, Y, outcomes};
use crate::memory::{Access, Clock, MemoryOptions, Order, SHARED_WINDOW, Scope, Site, Width};

/// Whether the registers `wanted` come out in some run.
fn seen(place: Place, program: &[&[Op]], wanted: &[u64]) -> bool {
    outcomes(place, program).iter().any(|outcome| outcome.starts_with(wanted))
}

fn st(loc: Loc, value: u64) -> Op {
    Op::St(Relaxed, Sys, loc, value)
}

fn ld(loc: Loc) -> Op {
    Op::Ld(Relaxed, Sys, loc)
}

const ALL: [Place; 4] = [Place::Shared, Place::Block, Place::Device, Place::Peers];

/// The flag is there and the payload is not.
const STALE: [u64; 2] = [1, 0];

#[test]
fn message_passing_needs_both_fences() {
    for place in ALL {
        let fence = Op::Fence(AcqRel, Sys);
        let (plain, fenced) = ([st(X, 1), st(Y, 1)], [st(X, 1), fence, st(Y, 1)]);
        let (read, fenced_read) = ([ld(Y), ld(X)], [ld(Y), fence, ld(X)]);
        assert!(seen(place, &[&plain, &read], &STALE), "{place:?}");
        assert!(seen(place, &[&fenced, &read], &STALE), "{place:?}");
        assert!(seen(place, &[&plain, &fenced_read], &STALE), "{place:?}");
        assert!(!seen(place, &[&fenced, &fenced_read], &STALE), "{place:?}");
        assert!(seen(place, &[&fenced, &fenced_read], &[1, 1]), "{place:?}");
    }
}

#[test]
fn message_passing_by_release_and_acquire() {
    for place in ALL {
        let writer = [Op::St(Weak, Cta, X, 1), Op::St(Release, Sys, Y, 1)];
        let reader = [Op::Ld(Acquire, Sys, Y), Op::Ld(Weak, Cta, X)];
        assert!(!seen(place, &[&writer, &reader], &STALE), "{place:?}");
        // A plain flag synchronises nothing, whatever is around it.
        let plain_flag = [st(X, 1), Op::Fence(AcqRel, Sys), Op::St(Weak, Cta, Y, 1)];
        assert!(seen(place, &[&plain_flag, &reader], &STALE), "{place:?}");
    }
}

#[test]
fn a_scope_has_to_reach_the_reader() {
    let run = |place, fence, flag, reader_fence| {
        let writer = [st(X, 1), Op::Fence(AcqRel, fence), Op::St(Relaxed, flag, Y, 1)];
        let reader = [Op::Ld(Relaxed, flag, Y), Op::Fence(AcqRel, reader_fence), ld(X)];
        seen(place, &[&writer, &reader], &STALE)
    };
    assert!(!run(Place::Block, Cta, Cta, Cta));
    assert!(run(Place::Device, Cta, Sys, Sys));
    assert!(run(Place::Device, Sys, Sys, Cta));
    assert!(run(Place::Device, Sys, Cta, Sys));
    assert!(!run(Place::Device, Gpu, Gpu, Gpu));
    assert!(run(Place::Peers, Gpu, Sys, Sys));
    assert!(run(Place::Peers, Sys, Sys, Gpu));
    assert!(run(Place::Peers, Sys, Gpu, Sys));
    assert!(!run(Place::Peers, Sys, Sys, Sys));
}

#[test]
fn a_narrow_fence_takes_nothing_back() {
    let reader = [Op::Ld(Relaxed, Sys, Y), Op::Fence(AcqRel, Sys), ld(X)];
    let with = |first, second| {
        let writer = [st(X, 1), Op::Fence(AcqRel, first), Op::Fence(AcqRel, second), st(Y, 1)];
        seen(Place::Peers, &[&writer, &reader], &STALE)
    };
    assert!(!with(Sys, Cta));
    assert!(!with(Cta, Sys));
    assert!(with(Gpu, Cta));
    // But it does not reach further than it does.
    let writer = [Op::Fence(AcqRel, Sys), st(X, 1), Op::Fence(AcqRel, Cta), st(Y, 1)];
    assert!(seen(Place::Peers, &[&writer, &reader], &STALE));
}

#[test]
fn half_a_cell_synchronises_nothing() {
    let (cell, half) = (Loc(1, 0, Width::B8), Loc(1, 0, Width::B4));
    let writer = [st(X, 1), Op::St(Release, Sys, cell, 1)];
    assert!(seen(Place::Device, &[&writer, &[Op::Ld(Acquire, Sys, half), ld(X)]], &STALE));
    assert!(!seen(Place::Device, &[&writer, &[Op::Ld(Acquire, Sys, cell), ld(X)]], &STALE));
}

#[test]
fn synchronisation_is_transitive_across_scopes() {
    // Thread 0 hands X to thread 1 of its block at .cta scope; that one hands it on through Y at .sys scope.
    let z = Loc(2, 0, Width::B4);
    let program: [&[Op]; 3] = [
        &[st(X, 1), Op::St(Release, Gpu, Y, 1)],
        &[Op::Ld(Acquire, Gpu, Y), Op::St(Release, Sys, z, 1)],
        &[Op::Ld(Acquire, Sys, z), ld(X)],
    ];
    assert!(!seen(Place::Device, &program, &[1, 1, 0]));
    assert!(seen(Place::Device, &program, &[1, 1, 1]));
}

#[test]
fn store_buffering_needs_sc_fences() {
    for place in ALL {
        let with = |fence: Option<Op>| {
            let side = |a, b| [Some(st(a, 1)), fence, Some(ld(b))].into_iter().flatten().collect::<Vec<_>>();
            seen(place, &[&side(X, Y), &side(Y, X)], &[0, 0])
        };
        assert!(with(None), "{place:?}");
        assert!(with(Some(Op::Fence(AcqRel, Sys))), "{place:?}");
        assert!(!with(Some(Op::Fence(Sc, Sys))), "{place:?}");
        assert_eq!(with(Some(Op::Fence(Sc, Gpu))), place == Place::Peers, "{place:?}");
        // Both fences have to reach.
        let side = |a, fence, b| [st(a, 1), Op::Fence(Sc, fence), ld(b)];
        let program: [&[Op]; 2] = [&side(X, Gpu, Y), &side(Y, Sys, X)];
        assert_eq!(seen(place, &program, &[0, 0]), place == Place::Peers, "{place:?}");
    }
}

#[test]
fn load_buffering_never_happens_here() {
    // PTX allows [1, 1]; this model reads when the load is executed, so it is stricter.
    let program: [&[Op]; 2] = [&[ld(X), st(Y, 1)], &[ld(Y), st(X, 1)]];
    assert!(!seen(Place::Device, &program, &[1, 1]));
    assert!(seen(Place::Device, &program, &[0, 1]));
}

#[test]
fn independent_reads_of_independent_writes() {
    for place in [Place::Block, Place::Device, Place::Peers] {
        let with = |order, fence: Option<Op>| {
            let reader = |a, b| {
                let (a, b) = (Op::Ld(order, Sys, a), Op::Ld(order, Sys, b));
                [Some(a), fence, Some(b)].into_iter().flatten().collect::<Vec<_>>()
            };
            let program: [&[Op]; 4] = [&[st(X, 1)], &[st(Y, 1)], &reader(X, Y), &reader(Y, X)];
            seen(place, &program, &[1, 0, 1, 0])
        };
        assert!(with(Relaxed, None), "{place:?}");
        assert!(with(Acquire, None), "{place:?}");
        assert!(with(Relaxed, Some(Op::Fence(AcqRel, Sys))), "{place:?}");
        assert!(!with(Relaxed, Some(Op::Fence(Sc, Sys))), "{place:?}");
    }
}

#[test]
fn one_location_never_goes_back() {
    for place in ALL {
        let program: [&[Op]; 2] = [&[st(X, 1), st(X, 2)], &[ld(X), ld(X), ld(X)]];
        let outcomes = outcomes(place, &program);
        assert!(outcomes.iter().all(|it| it[..3].is_sorted()), "{place:?}");
        assert!(outcomes.iter().any(|it| it[..3] == [0, 1, 2]), "{place:?}");
        // A thread sees its own stores, and later ones.
        let program: [&[Op]; 2] = [&[st(X, 1), ld(X)], &[st(X, 2)]];
        assert!(!seen(place, &program, &[0]), "{place:?}");
    }
}

#[test]
fn two_writers_see_one_order() {
    for place in ALL {
        let reader = [ld(X), ld(X)];
        let program: [&[Op]; 4] = [&[st(X, 1)], &[st(X, 2)], &reader, &reader];
        let outcomes = outcomes(place, &program);
        assert!(!outcomes.iter().any(|it| it.starts_with(&[1, 2, 2, 1])), "{place:?}");
        assert!(outcomes.iter().any(|it| it.starts_with(&[1, 2])), "{place:?}");
        assert!(outcomes.iter().any(|it| it.starts_with(&[2, 1])), "{place:?}");
    }
}

#[test]
fn stores_to_two_locations_may_be_seen_in_both_orders() {
    for place in ALL {
        let with = |fence: Option<Op>| {
            let side =
                |a, b| [Some(st(a, 1)), fence, Some(st(b, 2))].into_iter().flatten().collect::<Vec<_>>();
            // Each first store comes last in the coherence order of its location.
            outcomes(place, &[&side(X, Y), &side(Y, X)]).contains(&vec![1, 1])
        };
        assert!(with(None), "{place:?}");
        assert!(!with(Some(Op::Fence(Sc, Sys))), "{place:?}");
    }
}

#[test]
fn a_release_goes_through_atomics() {
    let writer = [Op::St(Weak, Cta, X, 1), Op::St(Release, Sys, Y, 1)];
    let between = [Op::Add(Relaxed, Sys, Y, 1)];
    let reader = [Op::Ld(Acquire, Sys, Y), ld(X)];
    for place in ALL {
        // The reader's flag is 2 only if the atomic came second.
        assert!(!seen(place, &[&writer, &between, &reader], &[1, 2, 0]), "{place:?}");
        assert!(seen(place, &[&writer, &between, &reader], &[1, 2, 1]), "{place:?}");
    }
    // Later strong stores of the writer carry its release on.
    let again = [Op::St(Weak, Cta, X, 1), Op::St(Release, Sys, Y, 1), Op::St(Relaxed, Sys, Y, 2)];
    assert!(!seen(Place::Device, &[&again, &reader], &[2, 0]));
    assert!(seen(Place::Device, &[&again, &reader], &[2, 1]));
    // A store of another between them breaks the chain.
    let between = [ld(Y), st(Y, 2)];
    assert!(seen(Place::Device, &[&writer, &between, &reader], &[1, 2, 0]));
}

#[test]
fn atomics_lose_nothing_at_sufficient_scope() {
    let total = |place, scope| {
        let add = [Op::Add(Relaxed, scope, X, 1), Op::Add(Relaxed, scope, X, 1)];
        outcomes(place, &[&add, &add, &add]).iter().map(|it| it[6]).collect::<Vec<_>>()
    };
    assert!(total(Place::Block, Cta).iter().all(|&it| it == 6));
    assert!(total(Place::Device, Gpu).iter().all(|&it| it == 6));
    assert!(total(Place::Peers, Sys).iter().all(|&it| it == 6));
    assert!(total(Place::Device, Cta).iter().any(|&it| it < 6));
    assert!(total(Place::Peers, Gpu).iter().any(|&it| it < 6));
}

#[test]
fn nothing_comes_between_the_halves_of_an_atomic() {
    for place in ALL {
        let outcomes = outcomes(place, &[&[Op::Add(Relaxed, Sys, X, 1)], &[st(X, 5)]]);
        let expected = [vec![0, 5, 0], vec![5, 6, 0]];
        assert!(outcomes.iter().eq(&expected), "{place:?}: {outcomes:?}");
    }
}

#[test]
fn a_barrier_passes_messages() {
    for place in [Place::Shared, Place::Block] {
        let program: [&[Op]; 2] =
            [&[Op::St(Weak, Cta, X, 1), Op::Barrier], &[Op::Barrier, Op::Ld(Weak, Cta, X)]];
        assert!(!seen(place, &program, &[0]), "{place:?}");
        let program: [&[Op]; 2] = [&[Op::St(Weak, Cta, X, 1)], &[Op::Ld(Weak, Cta, X)]];
        assert!(seen(place, &program, &[0]), "{place:?}");
    }
}

#[test]
fn a_cell_is_whole_and_two_words_are_not() {
    let (cell, data, flag) = (Loc(0, 0, Width::B8), Loc(0, 0, Width::B4), Loc(0, 4, Width::B4));
    let whole = 1 << 32 | 7;
    for place in ALL {
        let program: [&[Op]; 2] = [&[st(cell, whole)], &[ld(cell), ld(cell)]];
        let outcomes = outcomes(place, &program);
        assert!(outcomes.iter().flat_map(|it| &it[..2]).all(|&it| it == 0 || it == whole), "{place:?}");
        assert!(outcomes.iter().any(|it| it[..2] == [0, whole]), "{place:?}");
        // Loaded as two words, or stored as two: the flag may come first.
        assert!(seen(place, &[&[st(cell, whole)], &[ld(flag), ld(data)]], &[1, 0]), "{place:?}");
        assert!(seen(place, &[&[st(data, 7), st(flag, 1)], &[ld(flag), ld(data)]], &[1, 0]), "{place:?}");
    }
}

#[test]
fn read_then_tell_respects_what_was_read() {
    // Thread 1 reads the new X and says so; who acquires that may not read the old one.
    let program: [&[Op]; 3] =
        [&[st(X, 1)], &[ld(X), Op::St(Release, Sys, Y, 1)], &[Op::Ld(Acquire, Sys, Y), ld(X)]];
    for place in ALL {
        assert!(!seen(place, &program, &[1, 1, 0]), "{place:?}");
        assert!(seen(place, &program, &[0, 1, 0]), "{place:?}");
    }
}

#[test]
fn asynchronous_copies_arrive_late() {
    let mut early = 0;
    for seed in 0..100 {
        let options = MemoryOptions { weak: Some(seed), ..MemoryOptions::default() };
        let Machine { mut memory, threads, .. } = Machine::new(options, Place::Shared, 2);
        let copy = memory.begin_async(threads[0]);
        memory.write(copy, SHARED_WINDOW + 4, &[1; 16]).unwrap();
        let access = Access::weak(threads[0], Site(0));
        let look = |memory: &mut crate::memory::Memory| {
            (1..5)
                .map(|at| memory.load(&access, SHARED_WINDOW + 4 * at, Width::B4).unwrap())
                .collect::<Vec<_>>()
        };
        early += usize::from(look(&mut memory) == [0x0101_0101; 4]);
        let mut group = Clock::default();
        memory.end_async(copy, &mut group);
        memory.acquire(threads[0], &group);
        assert_eq!(look(&mut memory), [0x0101_0101; 4]);
    }
    assert!((1..50).contains(&early), "{early}");
}

#[test]
fn every_store_is_seen_in_the_end() {
    for seed in 0..100 {
        let options = MemoryOptions { weak: Some(seed), ..MemoryOptions::default() };
        let mut machine = Machine::new(options, Place::Peers, 2);
        machine.step(0, 0, Op::St(Weak, Cta, X, 1), &mut Vec::new()).unwrap();
        assert_eq!(machine.memory.pending(), 1);
        let mut ticks = 0;
        while machine.memory.pending() > 0 {
            machine.memory.tick();
            ticks += 1;
        }
        assert!((1..=4096).contains(&ticks), "{ticks}");
        assert!(machine.step(1, 0, Op::Wait(Weak, Cta, X, 1), &mut Vec::new()).unwrap());
    }
}
