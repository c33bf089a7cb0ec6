//! Recording: streams that take part write down their work instead of queueing it.

use std::thread::ThreadId;

use super::work::{Point, Work};

/// A point within a recording: its number there.
pub(super) type Mark = usize;

/// How much of each lane's work has happened, by lane.
type Progress = Vec<usize>;

/// The streams of a recording, each with its work. The first is the one that the recording began on.
#[derive(Debug)]
pub(super) struct Capture {
    pub(super) thread: ThreadId,
    lanes: Vec<Lane>,
    /// What precedes each mark.
    marks: Vec<Progress>,
    /// What was tried that cannot be recorded.
    pub(super) broken: Option<&'static str>,
}

#[derive(Debug)]
struct Lane {
    stream: u64,
    work: Vec<Work<Mark>>,
    /// What precedes this lane's next work in others.
    joined: Progress,
}

/// A recording that has ended: ready to be replayed any number of times.
#[derive(Debug)]
pub(super) struct Recorded {
    /// By lane.
    lanes: Vec<Vec<Work<Mark>>>,
    n_marks: usize,
    pub(super) n_nodes: usize,
}

impl Capture {
    /// A recording that begins on `stream`, by `thread`.
    pub(super) fn new(stream: u64, thread: ThreadId) -> Self {
        let mut capture = Self { thread, lanes: Vec::new(), marks: Vec::new(), broken: None };
        capture.lane(stream);
        capture
    }

    /// The stream that the recording began on.
    pub(super) fn origin(&self) -> u64 {
        self.lanes[0].stream
    }

    /// The streams that take part.
    pub(super) fn streams(&self) -> impl Iterator<Item = u64> {
        self.lanes.iter().map(|lane| lane.stream)
    }

    /// The number of the stream's lane, a new one if it has none.
    fn lane(&mut self, stream: u64) -> usize {
        self.lanes.iter().position(|lane| lane.stream == stream).unwrap_or_else(|| {
            self.lanes.push(Lane { stream, work: Vec::new(), joined: Progress::new() });
            self.lanes.len() - 1
        })
    }

    pub(super) fn push(&mut self, stream: u64, work: Work<Mark>) {
        let lane = self.lane(stream);
        self.lanes[lane].work.push(work);
    }

    /// Records a point behind the stream's work so far.
    pub(super) fn mark(&mut self, stream: u64) -> Mark {
        let (mark, number) = (self.marks.len(), self.lane(stream));
        let lane = &mut self.lanes[number];
        lane.work.push(Work::Record(mark));
        let mut precedes = lane.joined.clone();
        precedes.resize(precedes.len().max(number + 1), 0);
        precedes[number] = lane.work.len();
        self.marks.push(precedes);
        mark
    }

    /// Makes the stream's later work wait for the point; a stream that was not recorded yet is from now on.
    pub(super) fn wait(&mut self, stream: u64, mark: Mark) {
        let number = self.lane(stream);
        let (lane, precedes) = (&mut self.lanes[number], &self.marks[mark]);
        lane.work.push(Work::Wait(mark));
        lane.joined.resize(lane.joined.len().max(precedes.len()), 0);
        lane.joined.iter_mut().zip(precedes).for_each(|(known, &more)| *known = (*known).max(more));
    }

    /// Whether every lane's work precedes the end of the first.
    fn is_joined(&self) -> bool {
        let known = &self.lanes[0].joined;
        let last_node = |lane: &Lane| lane.work.iter().rposition(Work::is_node).map_or(0, |at| at + 1);
        self.lanes
            .iter()
            .enumerate()
            .skip(1)
            .all(|(i, lane)| known.get(i).copied().unwrap_or(0) >= last_node(lane))
    }

    /// Ends the recording.
    ///
    /// # Errors
    /// Why it cannot be a graph.
    pub(super) fn end(self) -> Result<Recorded, &'static str> {
        if let Some(reason) = self.broken {
            return Err(reason);
        }
        if !self.is_joined() {
            return Err("a stream that joined the capture was not joined again by the one that it began on");
        }
        let lanes: Vec<_> = self.lanes.into_iter().map(|lane| lane.work).collect();
        let n_nodes = lanes.iter().flatten().filter(|work| work.is_node()).count();
        Ok(Recorded { lanes, n_marks: self.marks.len(), n_nodes })
    }
}

impl Recorded {
    /// The work of every lane, the first one's in front, with points of its own.
    pub(super) fn instantiate(&self, new_point: impl FnMut() -> Point) -> Vec<Vec<Work<Point>>> {
        let points: Vec<Point> = std::iter::repeat_with(new_point).take(self.n_marks).collect();
        let live = |work: &Work<Mark>| work.map(|&mark| points[mark]);
        self.lanes.iter().map(|lane| lane.iter().map(live).collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use ptx_emulator::{Machine, MachineOptions};

    use super::*;

    fn fill() -> Work<Mark> {
        Work::Fill { to: 0, bytes: 1, pattern: [0].into() }
    }

    fn capture() -> Capture {
        Capture::new(10, std::thread::current().id())
    }

    #[test]
    fn a_fork_is_recorded_if_it_is_joined() {
        let mut forked = capture();
        forked.push(10, fill());
        let start = forked.mark(10);
        forked.wait(11, start);
        forked.push(11, fill());
        let end = forked.mark(11);
        forked.push(10, fill());
        forked.wait(10, end);
        assert_eq!(forked.streams().collect::<Vec<_>>(), [10, 11]);
        let recorded = forked.end().unwrap();
        assert_eq!(recorded.n_nodes, 3);
        let mut machine = Machine::new(MachineOptions::default());
        let lanes = recorded.instantiate(|| machine.event());
        let (Work::Record(made), Work::Wait(waited)) = (&lanes[0][1], &lanes[1][0]) else {
            panic!("{lanes:?}")
        };
        assert_eq!(made, waited);
        let again = recorded.instantiate(|| machine.event());
        assert!(
            matches!(&again[0][1], Work::Record(again) if again != made),
            "every replay has its own points"
        );
    }

    #[test]
    fn joins_pass_through_other_streams() {
        let mut chain = capture();
        let start = chain.mark(10);
        chain.wait(11, start);
        chain.push(11, fill());
        let second = chain.mark(11);
        chain.wait(12, second);
        chain.push(12, fill());
        let third = chain.mark(12);
        chain.wait(10, third);
        assert_eq!(chain.end().unwrap().n_nodes, 2);
    }

    #[test]
    fn what_is_left_behind_is_refused() {
        let mut forked = capture();
        let start = forked.mark(10);
        forked.wait(11, start);
        let early = forked.mark(11);
        forked.push(11, fill());
        forked.wait(10, early);
        assert!(forked.end().unwrap_err().contains("not joined"));
        let mut broken = capture();
        broken.broken = Some("synchronised");
        assert_eq!(broken.end().unwrap_err(), "synchronised");
    }
}
