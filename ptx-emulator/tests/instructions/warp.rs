//! What lanes of a warp do together, as CUDA describes it, with all lanes and with some.

use proptest::prelude::*;

use crate::lanes::{evaluate, words};

const THREADS: usize = 64;

/// Element `lane` of the warp of `thread`.
fn peer(row: &[u64], thread: usize, lane: usize) -> u64 {
    row[thread / 32 * 32 + lane]
}

/// `__shfl_*_sync(value, b, width)`: the source, if it lies within reach.
fn source(mode: &str, lane: usize, b: usize, width: usize, clamp: usize) -> Option<usize> {
    let first = lane / width * width;
    let last = first + (clamp % width);
    match mode {
        "up" => lane.checked_sub(b).filter(|&other| other >= first),
        "down" => Some(lane + b).filter(|&other| other <= last),
        // A lower segment may be read, a higher one not.
        "bfly" => Some(lane ^ b).filter(|&other| other <= last),
        _ => Some(first + b % width).filter(|&other| other <= last),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn shuffles(a in words(32), b in prop::collection::vec(0u64..32, THREADS), clamp in 0usize..32, log_width in 0u32..6) {
        let width = 1usize << log_width;
        for mode in ["up", "down", "bfly", "idx"] {
            // For `up` the bound lies below: none but the segment's start is given here.
            for clamp in if mode == "up" { [0, 0] } else { [31, clamp] } {
                let c = (32 - width) << 8 | clamp;
                for (result, d) in [("%d|%p", "b32"), ("%r|%d", "pred")] {
                    let body = format!(".reg .pred %p; .reg .b32 %r; shfl.sync.{mode}.b32 {result}, %a, %b, {c}, %mask;");
                    let found = evaluate(&body, d, &["b32", "b32"], &[&a, &b]);
                    for thread in 0..THREADS {
                        let lane = thread % 32;
                        let source = source(mode, lane, b[thread] as usize, width, clamp);
                        let wanted = match d {
                            "pred" => u64::from(source.is_some()),
                            _ => peer(&a, thread, source.unwrap_or(lane)),
                        };
                        prop_assert_eq!(found[thread], wanted, "{} of thread {}, b = {}", body, thread, b[thread]);
                    }
                }
            }
        }
    }

    /// Only lanes of the mask take part; the others keep 7.
    #[test]
    fn votes_matches_and_reductions(a in words(32), few in prop::collection::vec(0u64..3, THREADS), members in 1u32..) {
        let mask = vec![u64::from(members); THREADS];
        let inside = |lane: usize| members >> lane & 1 != 0;
        let run = |instruction: &str, source: &[u64]| {
            let body = format!(
                ".reg .pred %in, %p, %o; .reg .b32 %r; shr.u32 %r, %b, %laneid; and.b32 %r, %r, 1;
                setp.ne.u32 %in, %r, 0; setp.ne.u32 %p, %a, 0; mov.b32 %d, 7; setp.ne.u32 %o, %d, 7; {instruction}"
            );
            // Register %laneid is the special one.
            evaluate(&body, "b32", &["b32", "b32"], &[source, &mask])
        };
        let judge = |found: Vec<u64>, instruction: &str, model: &dyn Fn(usize, Vec<usize>) -> u64| {
            for thread in 0..THREADS {
                let base = thread / 32 * 32;
                let peers: Vec<usize> = (0..32).filter(|&lane| inside(lane)).map(|lane| base + lane).collect();
                let wanted = if inside(thread % 32) { model(thread, peers) } else { 7 };
                assert_eq!(found[thread], wanted, "{instruction} of thread {thread}, members {members:#x}");
            }
        };
        let bits = |peers: Vec<usize>, holds: &dyn Fn(usize) -> bool| {
            peers.into_iter().filter(|&peer| holds(peer)).fold(0u64, |bits, peer| bits | 1 << (peer % 32))
        };
        let set = |lane: usize| few[lane] != 0;

        let name = "@%in vote.sync.ballot.b32 %d, %p, %b;";
        judge(run(name, &few), name, &|_, peers| bits(peers, &set));
        let name = "@%in vote.sync.ballot.b32 %d, !%p, %b;";
        judge(run(name, &few), name, &|_, peers| bits(peers, &|lane| !set(lane)));
        let votes: [(&str, fn(usize, usize) -> bool); 3] =
            [("all", |set, all| set == all), ("any", |set, _| set > 0), ("uni", |set, all| set == 0 || set == all)];
        for (mode, model) in votes {
            let name = format!("@%in vote.sync.{mode}.pred %o, %p, %b; @%in selp.b32 %d, 1, 0, %o;");
            judge(run(&name, &few), &name, &|_, peers| {
                let count = peers.iter().filter(|&&peer| set(peer)).count();
                u64::from(model(count, peers.len()))
            });
        }
        let name = "@%in match.any.sync.b32 %d, %a, %b;";
        judge(run(name, &few), name, &|thread, peers| bits(peers, &|peer| few[peer] == few[thread]));
        let constant = vec![5; THREADS];
        for source in [&few, &constant] {
            let all = |peers: &[usize]| peers.iter().all(|&peer| source[peer] == source[peers[0]]);
            let name = "@%in match.all.sync.b32 %d|%o, %a, %b;";
            judge(run(name, source), name, &|_, peers| if all(&peers) { members.into() } else { 0 });
            let name = "@%in match.all.sync.b32 %r|%o, %a, %b; @%in selp.b32 %d, 1, 0, %o;";
            judge(run(name, source), name, &|_, peers| u64::from(all(&peers)));
        }
        let name = "@%in activemask.b32 %d;";
        judge(run(name, &few), name, &|_, peers| bits(peers, &|_| true));
        let name = "@%in elect.sync %r|%o, %b; @%in selp.b32 %d, %r, 100, %o;";
        judge(run(name, &few), name, &|thread, peers| if peers[0] == thread { (thread % 32) as u64 } else { 100 });

        type Fold = (&'static str, fn(u32, u32) -> u32);
        let folds: [Fold; 8] = [
            ("add.u32", u32::wrapping_add),
            ("min.u32", u32::min),
            ("max.u32", u32::max),
            ("min.s32", |a, b| (a as i32).min(b as i32) as u32),
            ("max.s32", |a, b| (a as i32).max(b as i32) as u32),
            ("and.b32", |a, b| a & b),
            ("or.b32", |a, b| a | b),
            ("xor.b32", |a, b| a ^ b),
        ];
        for (mode, fold) in folds {
            let name = format!("@%in redux.sync.{mode} %d, %a, %b;");
            judge(run(&name, &a), &name, &|_, peers| {
                peers.into_iter().map(|peer| a[peer] as u32).reduce(fold).unwrap().into()
            });
        }
    }

    #[test]
    fn matches_of_64_bits(high in prop::collection::vec(0u64..2, THREADS)) {
        let a: Vec<u64> = high.iter().map(|bit| bit << 40 | 9).collect();
        let found = evaluate("match.any.sync.b64 %d, %a, %mask;", "b32", &["b64"], &[&a]);
        for thread in 0..THREADS {
            let wanted = (0..32).filter(|&lane| peer(&a, thread, lane) == a[thread]).fold(0, |bits, lane| bits | 1 << lane);
            prop_assert_eq!(found[thread], wanted);
        }
    }
}
