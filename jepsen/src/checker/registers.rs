//! C6 for what no seq orders: the calls to each register fit one order, which is that of time where they did not overlap.
//! C2 for handles: no user has two.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::search::{Found, Model, Timed, search};
use super::violation::Violation;
use crate::history::{History, Outcome};
use crate::register::{Call, Register, Touch};

/// Steps for one register: below a second, and some 50 MB.
const STEPS_MAX: u64 = 500_000;

/// Judges all registers; gives what could not be decided.
pub(super) fn check(history: &History, violations: &mut Vec<Violation>) -> Vec<String> {
    let mut registers: BTreeMap<&Register, Vec<&Touch>> = BTreeMap::new();
    for touch in history.touches() {
        registers.entry(&touch.register).or_default().push(touch);
    }
    let mut doubts = Vec::new();
    for (register, touches) in &registers {
        let found = match register {
            Register::Handle(_) => search(&Handle, &timed(touches), STEPS_MAX),
            Register::ReadMark { .. } | Register::Cursor { .. } => {
                search(&Mark, &timed(touches), STEPS_MAX)
            }
        };
        match found {
            Found::Order => {}
            Found::Nothing => violations.push(Violation::NoOrder {
                register: (*register).clone(),
                calls: touches.len(),
            }),
            Found::Undecided => doubts.push(format!(
                "whether the {} calls to {register} fit an order was not found out",
                touches.len()
            )),
        }
    }
    check_users(history, violations);
    doubts
}

/// No user is seen under two handles.
fn check_users(history: &History, violations: &mut Vec<Violation>) {
    let mut handles: HashMap<u64, &Register> = HashMap::new();
    for touch in history.touches() {
        let Outcome::Ok(user @ 1..) = touch.outcome else {
            continue;
        };
        if !matches!(touch.register, Register::Handle(_)) {
            continue;
        }
        let first = *handles.entry(user).or_insert(&touch.register);
        if *first != touch.register {
            violations.push(Violation::TwoHandles {
                user,
                first: first.clone(),
                second: touch.register.clone(),
            });
        }
    }
}

/// What was answered; `None`: nobody knows.
type Answered = (Call, Option<u64>);

/// Without what could be left out of any order: a raise of which nobody knows, to what nobody has seen; all claims of
/// which nobody knows but the first, whose user may be anybody.
fn timed(touches: &[&Touch]) -> Vec<Timed<Answered>> {
    let answers = touches.iter().filter_map(|touch| match touch.outcome {
        Outcome::Ok(answer) => Some(answer),
        Outcome::Unknown(_) | Outcome::Fail(_) => None,
    });
    let seen: HashSet<u64> = answers.collect();
    let doubtful = touches
        .iter()
        .filter(|touch| touch.call == Call::Claim && matches!(touch.outcome, Outcome::Unknown(_)));
    let first_claim = doubtful.map(|touch| touch.invoked_ns).min();
    let counts = |touch: &&&Touch| match (&touch.outcome, touch.call) {
        (Outcome::Unknown(_), Call::Raise(to)) => seen.contains(&to),
        (Outcome::Unknown(_), Call::Claim) => Some(touch.invoked_ns) == first_claim,
        (Outcome::Unknown(_), Call::Look) => false,
        (Outcome::Ok(_) | Outcome::Fail(_), _) => true,
    };
    let timed = touches.iter().filter(counts).filter_map(|touch| {
        let (completed_ns, answer) = match touch.outcome {
            Outcome::Ok(answer) => (Some(touch.completed_ns), Some(answer)),
            Outcome::Unknown(_) => (None, None),
            Outcome::Fail(_) => return None,
        };
        Some(Timed {
            invoked_ns: touch.invoked_ns,
            completed_ns,
            call: (touch.call, answer),
        })
    });
    timed.collect()
}

struct Handle;

/// Whose a handle is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Owner {
    Nobody,
    /// Of a claim whose answer never came: a user of whom nothing is known yet.
    Somebody,
    User(u64),
}

impl Model for Handle {
    type State = Owner;
    type Call = Answered;

    fn start(&self) -> Owner {
        Owner::Nobody
    }

    fn step(&self, owner: &Owner, (call, answer): &Answered) -> Option<Owner> {
        match (call, answer, owner) {
            (Call::Claim, None, Owner::Nobody) => Some(Owner::Somebody),
            (Call::Claim, None, owner) => Some(*owner),
            // It is another's.
            (Call::Claim, Some(0), Owner::Nobody) => None,
            (Call::Claim, Some(0), owner) => Some(*owner),
            (Call::Claim, Some(user), Owner::Nobody) => Some(Owner::User(*user)),
            (Call::Claim, Some(_), _) => None,
            (Call::Look, None, owner) => Some(*owner),
            (Call::Look, Some(0), Owner::Nobody) => Some(Owner::Nobody),
            (Call::Look, Some(0), _) | (Call::Look, Some(_), Owner::Nobody) => None,
            (Call::Look, Some(user), Owner::Somebody) => Some(Owner::User(*user)),
            (Call::Look, Some(user), Owner::User(owner)) => {
                (user == owner).then_some(Owner::User(*owner))
            }
            (Call::Raise(_), ..) => None,
        }
    }
}

struct Mark;

impl Model for Mark {
    type State = u64;
    type Call = Answered;

    fn start(&self) -> u64 {
        0
    }

    fn step(&self, mark: &u64, (call, answer): &Answered) -> Option<u64> {
        let raised = call.seq().max(*mark);
        answer
            .is_none_or(|answer| answer == raised)
            .then_some(raised)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Op;

    fn judged(touches: &[(u64, u64, Call, Outcome<u64>)], register: &Register) -> Vec<Violation> {
        let touches = touches
            .iter()
            .map(|(invoked_ns, completed_ns, call, outcome)| {
                Op::Touch(Touch {
                    process: 1,
                    invoked_ns: *invoked_ns,
                    completed_ns: *completed_ns,
                    register: register.clone(),
                    call: *call,
                    outcome: outcome.clone(),
                })
            });
        let history = History {
            ops: touches.collect(),
        };
        let mut violations = Vec::new();
        assert_eq!(check(&history, &mut violations), Vec::<String>::new());
        violations
    }

    fn handle() -> Register {
        Register::Handle("tom".to_owned())
    }

    fn unknown() -> Outcome<u64> {
        Outcome::Unknown("Unavailable".to_owned())
    }

    #[test]
    fn a_handle_has_one_owner_for_ever() {
        let good = [
            (1, 2, Call::Look, Outcome::Ok(0)),
            (3, 6, Call::Claim, Outcome::Ok(7)),
            (3, 6, Call::Claim, Outcome::Ok(0)),
            (7, 8, Call::Look, Outcome::Ok(7)),
        ];
        assert_eq!(judged(&good, &handle()), []);
        for bad in [
            (9, 10, Call::Claim, Outcome::Ok(8)),
            (9, 10, Call::Look, Outcome::Ok(0)),
            (9, 10, Call::Look, Outcome::Ok(9)),
        ] {
            let calls = [&good[..], &[bad]].concat();
            let found = judged(&calls, &handle());
            assert!(
                matches!(found[..], [Violation::NoOrder { calls: 5, .. }]),
                "{found:?}"
            );
        }
    }

    #[test]
    fn a_claim_in_doubt_may_be_whose_user_is_seen_later() {
        let claims = [
            (1, 2, Call::Claim, unknown()),
            (3, 4, Call::Claim, Outcome::Ok(0)),
            (5, 6, Call::Look, Outcome::Ok(7)),
        ];
        assert_eq!(judged(&claims, &handle()), []);
        assert_eq!(
            judged(&claims[1..], &handle()).len(),
            1,
            "whose should it be?"
        );
        let other = (7, 8, Call::Look, Outcome::Ok(8));
        assert_eq!(
            judged(&[&claims[..], &[other]].concat(), &handle()).len(),
            1
        );
    }

    #[test]
    fn a_mark_never_falls() {
        let register = Register::ReadMark { user: 1, peer: 2 };
        let good = [
            (1, 2, Call::Raise(5), Outcome::Ok(5)),
            (3, 4, Call::Raise(3), Outcome::Ok(5)),
            (5, 6, Call::Raise(9), unknown()),
            (7, 8, Call::Raise(6), Outcome::Ok(9)),
        ];
        assert_eq!(judged(&good, &register), []);
        let fallen = (9, 10, Call::Raise(7), Outcome::Ok(7));
        assert_eq!(judged(&[&good[..], &[fallen]].concat(), &register).len(), 1);
        let refused = (
            9,
            10,
            Call::Raise(99),
            Outcome::Fail("SeqBeyondHead".to_owned()),
        );
        let after = (11, 12, Call::Raise(1), Outcome::Ok(9));
        assert_eq!(
            judged(&[&good[..], &[refused, after]].concat(), &register),
            []
        );
    }

    #[test]
    fn two_marks_may_stand_at_one_seq() {
        for peer in [2, 3] {
            let register = Register::ReadMark { user: 1, peer };
            let touches = [
                (1, 2, Call::Raise(5), Outcome::Ok(5)),
                (3, 4, Call::Look, Outcome::Ok(5)),
            ];
            assert_eq!(judged(&touches, &register), []);
        }
        let both = [2, 3].map(|peer| {
            Op::Touch(Touch {
                process: 1,
                invoked_ns: 1,
                completed_ns: 2,
                register: Register::ReadMark { user: 1, peer },
                call: Call::Raise(7),
                outcome: Outcome::Ok(7),
            })
        });
        let (history, mut violations) = (History { ops: both.into() }, Vec::new());
        check(&history, &mut violations);
        assert_eq!(violations, []);
    }

    #[test]
    fn a_user_with_two_handles_is_found_out() {
        let claim = |handle: &str| {
            Op::Touch(Touch {
                process: 1,
                invoked_ns: 1,
                completed_ns: 2,
                register: Register::Handle(handle.to_owned()),
                call: Call::Claim,
                outcome: Outcome::Ok(7),
            })
        };
        let history = History {
            ops: vec![claim("tom"), claim("ann")],
        };
        let mut violations = Vec::new();
        check(&history, &mut violations);
        assert!(matches!(
            violations[..],
            [Violation::TwoHandles { user: 7, .. }]
        ));
    }
}
