//! Answers of pure functions, recalled by one thread that plays many machines. Behind the cargo feature `recall`, in
//! no default; without it every function here only asks.
//!
//! # Rules
//! * Only answers of pure functions are kept, by a digest of everything that they depend on. So results are the same
//!   with and without this memory; only time differs.
//! * The first question is answered by the real function. So is one of the first 16 repetitions of a change of state,
//!   and every 128th after it, and it must come out the same: a change that depends on anything else is a bug that
//!   shows here.
//! * Who made something knows the answer: a signature that this thread made is good, except of one in 16, which
//!   the real function is asked about.
//! * Nothing is recalled outside of a [`Recall`]'s life, or on another thread.
//! * At most twice the room's bound is kept; the older half is forgotten as a whole.
//!
//! # Why
//! A simulated fleet runs on one core and asks the same question once for each of its machines: a finality proof is
//! checked, and a block is executed, by every machine. Agents and validators do not ask for this feature; where a build of the whole workspace
//! brings it in, nothing is recalled, since nothing but the simulator begins to.

#[cfg(feature = "recall")]
pub use self::memory::Recall;
use crate::ids::Digest;

/// Which function was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Whether a signature is good.
    Signature,
    /// The same, for who believes nobody but the signer: no verdict of a machine that checked it comes in here.
    Signed,
    /// Whether 32 bytes are admitted as a key.
    Key,
    /// Multiples of a key that signs much.
    Table,
    /// Who is who in a genesis file.
    Registry,
    /// The global queue before the first block.
    Genesis,
    /// What a block on its way down comes to, after all checks.
    Advance,
    /// What executing a block does to the global queue, of an agent or a validator.
    Execution,
}

/// The answer of a pure function. `question` is a digest of all that it depends on.
pub fn recalled<A: Clone + 'static>(room: Room, question: impl FnOnce() -> Digest, function: impl FnOnce() -> A) -> A {
    #[cfg(feature = "recall")]
    return memory::recalled(room, question, function);
    #[cfg(not(feature = "recall"))]
    {
        let _ = (room, question);
        function()
    }
}

/// The answer is known already to whoever made what is asked about.
pub fn known<A: Clone + 'static>(room: Room, question: impl FnOnce() -> Digest, answer: A) {
    #[cfg(feature = "recall")]
    memory::known(room, question, answer);
    #[cfg(not(feature = "recall"))]
    let _ = (room, question, answer);
}

/// Changes `state` as a function of nothing but itself and what `question` is a digest of, together with the state.
pub fn recalled_change<S: Clone + 'static, A: Clone + PartialEq + 'static>(
    room: Room,
    state: &mut S,
    question: impl FnOnce(&S) -> Digest,
    change: impl FnOnce(&mut S) -> A,
) -> A {
    #[cfg(feature = "recall")]
    return memory::recalled_change(room, state, question, change);
    #[cfg(not(feature = "recall"))]
    {
        let _ = (room, question);
        change(state)
    }
}

#[cfg(feature = "recall")]
mod memory {
    #![allow(clippy::disallowed_types, reason = "looked up by digest and never iterated")]

    use std::{
        any::Any, cell::RefCell, collections::HashMap, hash::BuildHasherDefault, marker::PhantomData, mem::take,
    };

    use super::Room;
    use crate::{first_bytes::FirstBytes, ids::Digest};

    /// One in so many known answers is not relied on, nor is one of the first so many repetitions of a change.
    const CHECKED_ONE_IN: u64 = 16;
    /// A fleet of hundreds repeats each change as often: this many repetitions later it is checked again.
    const CHECKED_AGAIN_AFTER: u64 = 128;

    struct Kept {
        answer: Box<dyn Any>,
        repetitions: u64,
    }

    type ByDigest = HashMap<Digest, Kept, BuildHasherDefault<FirstBytes>>;

    /// Which repetitions are checked differs from change to change.
    fn is_checked(question: &Digest, repetition: u64) -> bool {
        repetition % CHECKED_AGAIN_AFTER == u64::from(question.0[0]) % CHECKED_ONE_IN + 1
    }

    /// Answers by question, in two generations.
    #[derive(Default)]
    struct Answers {
        young: ByDigest,
        old: ByDigest,
    }

    impl Answers {
        fn get<A: Clone + 'static>(&mut self, question: &Digest) -> Option<A> {
            self.get_again(question).map(|(answer, _)| answer)
        }

        /// The answer, and how often it was given before and now; 1 is the first repetition.
        fn get_again<A: Clone + 'static>(&mut self, question: &Digest) -> Option<(A, u64)> {
            let kept = self.young.get_mut(question).or_else(|| self.old.get_mut(question))?;
            kept.repetitions += 1;
            // A room has answers of one type.
            Some((kept.answer.downcast_ref::<A>()?.clone(), kept.repetitions))
        }

        fn keep<A: 'static>(&mut self, question: Digest, answer: A, most: usize) {
            if self.young.len() >= most {
                self.old = take(&mut self.young);
            }
            let answer = Box::new(answer);
            self.young.insert(question, Kept { answer, repetitions: 0 });
        }
    }

    impl Room {
        /// Answers in a generation.
        const fn most(self) -> usize {
            match self {
                // More than a fleet makes within the time that a signature travels.
                Self::Signature | Self::Signed => 32_768,
                Self::Key => 4_096,
                // 30 KB each: who writes in one cluster, or in all of them.
                Self::Table => 256,
                Self::Registry | Self::Genesis => 4,
                // A block is asked about while members of a cluster lag behind each other.
                Self::Advance => 1_024,
                Self::Execution => 128,
            }
        }
    }

    std::thread_local! {
        static ROOMS: RefCell<Option<[Answers; 8]>> = const { RefCell::new(None) };
    }

    /// While it lives, this thread recalls. Not to be sent to another thread.
    #[derive(Debug)]
    pub struct Recall(PhantomData<*const ()>);

    impl Recall {
        /// Begins with nothing, and replaces what this thread recalled.
        #[must_use]
        pub fn begin() -> Self {
            ROOMS.with_borrow_mut(|rooms| *rooms = Some(Default::default()));
            Self(PhantomData)
        }
    }

    impl Drop for Recall {
        fn drop(&mut self) {
            ROOMS.with_borrow_mut(|rooms| *rooms = None);
        }
    }

    fn is_on() -> bool {
        ROOMS.with_borrow(Option::is_some)
    }

    fn within<T>(room: Room, look: impl FnOnce(&mut Answers) -> T) -> Option<T> {
        ROOMS.with_borrow_mut(|rooms| rooms.as_mut().map(|rooms| look(&mut rooms[room as usize])))
    }

    pub(super) fn recalled<A: Clone + 'static>(
        room: Room,
        question: impl FnOnce() -> Digest,
        function: impl FnOnce() -> A,
    ) -> A {
        if !is_on() {
            return function();
        }
        let question = question();
        // Not held while the function runs: it may ask other questions.
        if let Some(answer) = within(room, |answers| answers.get(&question)).flatten() {
            return answer;
        }
        let answer = function();
        within(room, |answers| answers.keep(question, answer.clone(), room.most()));
        answer
    }

    pub(super) fn known<A: Clone + 'static>(room: Room, question: impl FnOnce() -> Digest, answer: A) {
        if !is_on() {
            return;
        }
        let question = question();
        if u64::from(question.0[0]) % CHECKED_ONE_IN != 0 {
            within(room, |answers| answers.keep(question, answer, room.most()));
        }
    }

    pub(super) fn recalled_change<S: Clone + 'static, A: Clone + PartialEq + 'static>(
        room: Room,
        state: &mut S,
        question: impl FnOnce(&S) -> Digest,
        change: impl FnOnce(&mut S) -> A,
    ) -> A {
        if !is_on() {
            return change(state);
        }
        let question = question(state);
        let kept: Option<((S, A), u64)> = within(room, |answers| answers.get_again(&question)).flatten();
        match kept {
            Some(((after, answer), repetition)) if !is_checked(&question, repetition) => {
                *state = after;
                answer
            }
            Some(((_, before), _)) => {
                let answer = change(state);
                assert!(
                    answer == before,
                    "a change of {room:?} depends on more than its question"
                );
                answer
            }
            None => {
                let answer = change(state);
                within(room, |answers| {
                    answers.keep(question, (state.clone(), answer.clone()), room.most())
                });
                answer
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use std::cell::Cell;

        use super::*;
        use crate::crypto::{AdmittedKey, DeviceKey, KeyError, Signature, preimage, sha256};

        fn question(number: u64) -> Digest {
            sha256(&[&number.to_be_bytes()])
        }

        #[test]
        fn second_question_is_answered_from_memory_and_another_one_is_not() {
            let asked = Cell::new(0);
            let ask = |number: u64| {
                recalled(
                    Room::Key,
                    || question(number),
                    || {
                        asked.set(asked.get() + 1);
                        number * 2
                    },
                )
            };
            assert_eq!(
                (ask(1), ask(1), asked.get()),
                (2, 2, 2),
                "nothing is kept before a recall begins"
            );
            let recall = Recall::begin();
            assert_eq!((ask(1), ask(1), ask(2), asked.get()), (2, 2, 4, 4));
            #[expect(clippy::disallowed_methods, reason = "the claim is about another thread")]
            let other = std::thread::scope(|scope| scope.spawn(is_on).join().unwrap());
            assert!(!other, "of one thread");
            drop(recall);
            assert_eq!((ask(1), asked.get()), (2, 5), "gone with its life");
        }

        #[test]
        fn known_answer_is_not_asked_for_but_now_and_then() {
            let asked = Cell::new(0);
            let ask = |number: u64| {
                let function = || {
                    asked.set(asked.get() + 1);
                    number
                };
                recalled(Room::Key, || question(number), function)
            };
            known(Room::Key, || question(0), 0_u64);
            assert_eq!((ask(0), asked.get()), (0, 1), "nothing is kept before a recall begins");
            let _recall = Recall::begin();
            for number in 0..320 {
                known(Room::Key, || question(number), number);
                assert_eq!(ask(number), number);
            }
            assert!((5..60).contains(&asked.get()), "{}", asked.get());
        }

        #[test]
        fn who_believes_signers_alone_does_not_take_the_verdict_of_a_machine() {
            let _recall = Recall::begin();
            let key = AdmittedKey::admit(&DeviceKey::from_seed(&[7; 32]).public()).unwrap();
            let (message, forged) = (b"what nobody signed", Signature::from_bytes(&[1; 64]));
            let question = || sha256(&[&key.to_bytes(), &forged.to_bytes(), message]);
            assert!(recalled(Room::Signature, question, || true), "a machine was wrong");
            assert!(key.verifies(message, &forged));
            assert!(!key.has_signed(message, &forged));
        }

        #[test]
        fn memory_is_bounded_and_keeps_the_newest() {
            let mut answers = Answers::default();
            for number in 0..100 {
                answers.keep(question(number), number, 8);
                assert!(answers.young.len() + answers.old.len() <= 16);
            }
            assert!((92..100).all(|number| answers.get(&question(number)) == Some(number)));
            assert_eq!(answers.get::<u64>(&question(0)), None);
        }

        #[test]
        fn change_is_recalled_with_the_state_behind_it() {
            let _recall = Recall::begin();
            let carried_out = Cell::new(0);
            for _ in 0..200 {
                let mut state = 5;
                let answer = recalled_change(
                    Room::Execution,
                    &mut state,
                    |state| question(*state),
                    |state| {
                        carried_out.set(carried_out.get() + 1);
                        *state += 1;
                        "done"
                    },
                );
                assert_eq!((state, answer), (6, "done"));
            }
            assert_eq!(
                carried_out.get(),
                3,
                "once, and to compare among the first 16 repetitions and 128 later"
            );
        }

        #[test]
        #[should_panic(expected = "depends on more than its question")]
        fn change_that_depends_on_something_else_is_noticed() {
            let _recall = Recall::begin();
            for outside in 0..40 {
                recalled_change(Room::Execution, &mut 5u64, |state| question(*state), |_| outside);
            }
        }

        #[test]
        fn recalled_verdicts_are_of_one_key_message_and_signature() {
            let _recall = Recall::begin();
            let chain = crate::ids::ChainId([9; 32]);
            let header = crate::batch::BatchHeader::default();
            let device = DeviceKey::from_seed(&[3; 32]);
            let message = preimage::preimage(preimage::Tag::Batch, &chain, &header);
            let good = device.sign_attestation(&chain, &header);
            let flipped = Signature { s: [1; 32], ..good };
            let key = AdmittedKey::admit(&device.public()).unwrap();
            let other = AdmittedKey::admit(&DeviceKey::from_seed(&[4; 32]).public()).unwrap();
            for _ in 0..2 {
                assert!(key.verifies(&message, &good));
                assert!(!other.verifies(&message, &good));
                assert!(!key.verifies(&message[1..], &good));
                assert!(!key.verifies(&message, &flipped));
                assert_eq!(AdmittedKey::admit(&[0; 32]), Err(KeyError::Weak));
                assert_eq!(AdmittedKey::admit(&device.public()), Ok(key));
            }
        }
    }
}
