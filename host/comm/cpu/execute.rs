//! Executes the steps of one call.

use super::{
    CpuBuffer, CpuComm, Transfer, Words,
    link::{Link, Place, Stop},
};
use crate::comm::{
    Collective, CommError, DType, Element, Header, Phase,
    schedule::{Message, Op, Step, same_round},
    sequence,
};

/// One call on one buffer.
pub(super) struct Call {
    pub(super) collective: Collective,
    pub(super) numel: usize,
    pub(super) dtype: DType,
    pub(super) sequence: u64,
}

impl Call {
    fn header(&self, message: &Message) -> Header {
        let Self { sequence, collective, numel, dtype } = *self;
        Header { sequence, collective, numel, dtype, range: message.range.clone() }
    }

    fn place(&self, step: &Step, message: &Message) -> Place {
        Place { peer: step.peer, slot: message.slot, parity: sequence::parity(self.sequence) }
    }

    fn includes(&self, step: &Step) -> bool {
        !matches!(self.collective, Collective::Stage(phase) if phase != step.phase)
    }
}

impl<L: Link> CpuComm<L> {
    /// Round by round: posts all sends, then takes the receives in order.
    pub(super) fn execute<T: Element>(&self, call: &Call, buf: &mut CpuBuffer<L>) -> Result<(), CommError> {
        let CpuBuffer { data, slots, plan, .. } = buf;
        for round in plan.steps.chunk_by(same_round).filter(|round| call.includes(&round[0])) {
            for step in round {
                self.post::<T>(call, step, slots, data)?;
            }
            if round[0].phase == Phase::Reduce {
                self.sum_round(call, round, slots, data.as_mut_slice::<T>())?;
            } else {
                self.take_round(call, round, slots, data.as_mut_slice::<T>())?;
            }
        }
        Ok(())
    }

    fn post<T: Element>(
        &self,
        call: &Call,
        step: &Step,
        slots: &L::Slots,
        data: &Words,
    ) -> Result<(), CommError> {
        let Some(message) = step.send.as_ref().filter(|_| step.peer != self.topology.rank) else {
            return Ok(());
        };
        let header = call.header(message);
        let payload = &data.as_slice::<T>()[message.range.clone()];
        let waited = self
            .link
            .put(slots, call.place(step, message), &header, payload)
            .map_err(|stop| self.name(stop, step, &header, 0))?;
        self.waits_for_free_slot.set(self.waits_for_free_slot.get() + u64::from(waited));
        self.record(call, step, message, self.topology.rank, step.peer);
        Ok(())
    }

    /// Sums a round's messages and the own elements in list order, in fp32, and rounds once.
    fn sum_round<T: Element>(
        &self,
        call: &Call,
        round: &[Step],
        slots: &L::Slots,
        data: &mut [T],
    ) -> Result<(), CommError> {
        let mut sum = self.sum.borrow_mut();
        let Some(own) = round.iter().find_map(|step| step.recv.as_ref()).map(|message| message.range.clone())
        else {
            return Ok(());
        };
        sum.resize(own.len(), 0.0);
        for step in round {
            if step.peer == self.topology.rank {
                accumulate(&mut sum, &data[own.clone()], step.op);
            } else {
                self.take(call, step, slots, |_, elements: &[T]| accumulate(&mut sum, elements, step.op))?;
            }
        }
        for (to, &value) in data[own].iter_mut().zip(sum.iter()) {
            *to = T::from_f32(value);
        }
        Ok(())
    }

    /// Takes a round's messages, each into its own range.
    fn take_round<T: Element>(
        &self,
        call: &Call,
        round: &[Step],
        slots: &L::Slots,
        data: &mut [T],
    ) -> Result<(), CommError> {
        round.iter().try_for_each(|step| {
            self.take(call, step, slots, |message, elements: &[T]| {
                let to = &mut data[message.range.clone()];
                match step.op {
                    Op::Replace => to.copy_from_slice(elements),
                    Op::Add => to
                        .iter_mut()
                        .zip(elements)
                        .for_each(|(to, from)| *to = T::from_f32(to.to_f32() + from.to_f32())),
                }
            })
        })
    }

    fn take<T: Element>(
        &self,
        call: &Call,
        step: &Step,
        slots: &L::Slots,
        read: impl FnOnce(&Message, &[T]),
    ) -> Result<(), CommError> {
        let Some(message) = &step.recv else { return Ok(()) };
        let expected = call.header(message);
        self.link
            .take(slots, call.place(step, message), &expected, |elements: &[T]| read(message, elements))
            .map_err(|stop| self.name(stop, step, &expected, call.sequence))?;
        self.record(call, step, message, step.peer, self.topology.rank);
        Ok(())
    }

    /// Turns an ended wait into an error that says who waited for whom, where, for which sequence number
    /// (`awaited`; 0 is a free slot).
    fn name(&self, stop: Stop, step: &Step, expected: &Header, awaited: u64) -> CommError {
        let rank = self.link.world_rank(self.topology.rank);
        let peer = self.link.world_rank(step.peer);
        let (phase, round) = (step.phase, step.round);
        match stop {
            Stop::Late { seen } => CommError::Timeout {
                rank,
                peer,
                phase,
                step: round,
                expected: awaited,
                seen,
                waited: self.link.options().timeout,
            },
            Stop::Unexpected(found) => {
                CommError::Mismatch { rank, peer, phase, step: round, expected: expected.clone(), found }
            }
            Stop::Interrupted => self.link.interruption(step.peer),
        }
    }

    fn record(&self, call: &Call, step: &Step, message: &Message, from: usize, to: usize) {
        if self.link.options().log {
            let Step { phase, round, .. } = *step;
            let Message { range, slot } = message.clone();
            let transfer = Transfer { sequence: call.sequence, phase, round, from, to, range, slot };
            self.log.borrow_mut().push(transfer);
        }
    }
}

fn accumulate<T: Element>(sum: &mut [f32], elements: &[T], op: Op) {
    let pairs = sum.iter_mut().zip(elements);
    match op {
        Op::Replace => pairs.for_each(|(sum, element)| *sum = element.to_f32()),
        Op::Add => pairs.for_each(|(sum, element)| *sum += element.to_f32()),
    }
}
