//! Cards of the field, in every order.

use std::time::Duration;

use super::{Candidate, CardChoice, CardKey, Look, Reach};

const A: CardKey = (0, 2);
const B: CardKey = (0, 3);

/// Time in tenths of a second, the cards there are, and what each would reach.
struct Field {
    choice: CardChoice,
    now: Duration,
    cards: Vec<Candidate>,
    carriers: usize,
    reach: Box<dyn Fn(CardKey) -> Reach>,
    /// Time that a trial takes which fails.
    slow: Duration,
    trials: Vec<(Duration, CardKey)>,
    pending: Vec<(Duration, CardKey, Reach)>,
    fruitless: Vec<(Duration, CardKey)>,
    received: u64,
    trouble: bool,
    served: bool,
}

impl Field {
    fn new(reach: impl Fn(CardKey) -> Reach + 'static) -> Self {
        Self {
            choice: CardChoice::new(true),
            now: Duration::ZERO,
            cards: Vec::new(),
            carriers: 2,
            reach: Box::new(reach),
            slow: Duration::from_secs(3),
            trials: Vec::new(),
            pending: Vec::new(),
            fruitless: Vec::new(),
            received: 0,
            trouble: false,
            served: false,
        }
    }

    fn card(&mut self, key: CardKey, rank: u8) {
        self.cards.push(Candidate { key, rank, carrier: true });
    }

    fn pass(&mut self, seconds: u64) {
        let until = self.now + Duration::from_secs(seconds);
        while self.now < until {
            let look = Look {
                now: self.now,
                candidates: &self.cards,
                carriers: self.carriers,
                received: self.received,
                trouble: std::mem::take(&mut self.trouble),
                served: std::mem::take(&mut self.served),
            };
            for key in self.choice.look(&look) {
                self.trials.push((self.now, key));
                let reach = (self.reach)(key);
                let time = if reach == Reach::No { self.slow } else { Duration::from_millis(100) };
                self.pending.push((self.now + time, key, reach));
            }
            self.now += Duration::from_millis(100);
            let (done, pending) = self.pending.drain(..).partition(|(at, ..)| *at <= self.now);
            self.pending = pending;
            for (_, key, reach) in Vec::from_iter(done) as Vec<(Duration, CardKey, Reach)> {
                self.choice.tried(key, reach, self.now);
                if self.choice.is_fruitless(key, self.now) {
                    self.fruitless.push((self.now, key));
                }
            }
        }
    }
}

fn only(good: CardKey) -> impl Fn(CardKey) -> Reach {
    move |key| if key == good { Reach::Yes } else { Reach::No }
}

#[test]
fn one_card_is_used_at_once_and_tried_when_requests_fail() {
    let mut field = Field::new(only(A));
    field.carriers = 1;
    field.card(A, 0);
    field.pass(1);
    assert_eq!((field.choice.chosen(), field.choice.is_settled(field.now)), (Some(A), true));
    field.pass(600);
    assert_eq!(field.trials, []);
    field.trouble = true;
    field.pass(600);
    assert_eq!(field.trials.len(), 1);
    assert_eq!(field.fruitless, []);
}

#[test]
fn a_card_that_reaches_nothing_for_long_is_to_be_given_something_else_ever_more_seldom() {
    for carriers in [1, 2] {
        let mut field = Field::new(|_| Reach::No);
        field.carriers = carriers;
        field.card(A, 0);
        for _ in 0..3600 / 30 {
            field.trouble = true;
            field.pass(30);
        }
        let times: Vec<u64> = field.fruitless.iter().map(|(at, _)| at.as_secs()).collect();
        assert!((60..90).contains(&times[0]) && (4..=8).contains(&times.len()), "{times:?}");
        assert!(times.windows(3).all(|three| three[1] - three[0] <= three[2] - three[1] + 60), "{times:?}");
        // A source that answers ends it, and it begins anew.
        field.reach = Box::new(|_| Reach::Yes);
        field.pass(120);
        let before = field.fruitless.len();
        field.reach = Box::new(|_| Reach::Doubtful);
        for _ in 0..4 {
            field.trouble = true;
            field.pass(30);
        }
        assert_eq!(field.fruitless.len(), before + 1);
    }
}

#[test]
fn requests_that_are_served_outweigh_trials_in_vain() {
    for reach in [Reach::No, Reach::Doubtful] {
        let mut field = Field::new(move |_| reach);
        field.card(A, 3);
        field.card(B, 3);
        // A source that is slow, or the last of many: now and then a request fails, and the next one is served.
        for round in 0..120 {
            field.trouble = round % 4 == 0;
            field.pass(1);
            field.served = true;
            field.pass(4);
        }
        assert_eq!((field.fruitless.clone(), field.choice.chosen()), (vec![], Some(A)), "{reach:?}");
        assert_eq!(field.choice.reach(A), Reach::Yes);
        // Once they only fail, it is as if none had been served.
        for _ in 0..12 {
            field.trouble = true;
            field.pass(15);
        }
        assert!(!field.fruitless.is_empty());
    }
}

#[test]
fn where_no_trial_succeeds_cards_whose_networks_give_as_much_take_turns_while_requests_fail() {
    let mut field = Field::new(|_| Reach::No);
    field.card(A, 3);
    field.card(B, 3);
    field.card((0, 4), 1);
    let mut used = Vec::new();
    for _ in 0..24 {
        field.trouble = true;
        field.pass(15);
        used.extend(field.choice.chosen());
    }
    used.dedup();
    assert!(used.len() >= 5 && used.windows(2).all(|two| two[0] != two[1]), "{used:?}");
    assert!(used.iter().all(|key| [A, B].contains(key)), "{used:?}");
}

#[test]
fn a_card_is_given_nothing_else_while_another_reaches_a_source_or_nothing_fails() {
    let mut field = Field::new(only(B));
    field.card(A, 0);
    field.card(B, 0);
    for _ in 0..20 {
        field.trouble = true;
        field.pass(30);
    }
    assert_eq!(field.fruitless, []);
    let mut field = Field::new(|_| Reach::No);
    field.card(A, 0);
    field.pass(600);
    assert_eq!(field.fruitless, []);
}

#[test]
fn the_card_that_reaches_a_source_is_used_whichever_was_first() {
    for (first, second) in [(A, B), (B, A)] {
        for (good, rank_of_bad) in [(first, 3), (second, 3), (second, 0), (first, 0)] {
            let mut field = Field::new(only(good));
            field.card(first, if first == good { 1 } else { rank_of_bad });
            field.pass(2);
            field.card(second, if second == good { 1 } else { rank_of_bad });
            field.pass(4);
            assert_eq!(field.choice.chosen(), Some(good));
            assert!(field.choice.is_settled(field.now));
        }
    }
}

#[test]
fn a_second_card_is_not_tried_while_the_first_reaches_a_source() {
    let mut field = Field::new(|_| Reach::Yes);
    field.card(A, 1);
    field.pass(1);
    assert!(field.choice.is_settled(field.now));
    field.card(B, 3);
    field.pass(600);
    assert_eq!(field.choice.chosen(), Some(A));
    assert!(field.trials.iter().all(|(_, key)| *key == A));
    assert!((4..=7).contains(&field.trials.len()), "{}", field.trials.len());
}

#[test]
fn bytes_that_come_in_are_a_trial() {
    let mut field = Field::new(|_| Reach::Yes);
    field.card(A, 1);
    field.card(B, 1);
    for _ in 0..60 {
        field.received += 10 << 20;
        field.pass(10);
    }
    assert_eq!(field.trials.len(), 1);
}

#[test]
fn a_card_that_stops_reaching_is_left() {
    let mut field = Field::new(|key| if key == A { Reach::Yes } else { Reach::No });
    field.card(A, 1);
    field.card(B, 1);
    field.pass(60);
    assert_eq!(field.choice.chosen(), Some(A));
    field.reach = Box::new(only(B));
    field.pass(40);
    assert_eq!(field.choice.chosen(), Some(B));
    // And sooner when requests fail.
    field.reach = Box::new(only(A));
    field.trouble = true;
    field.pass(5);
    assert_eq!(field.choice.chosen(), Some(A));
}

#[test]
fn a_cable_that_is_pulled_makes_way_at_once() {
    let mut field = Field::new(|_| Reach::Yes);
    field.card(A, 1);
    field.card(B, 1);
    // The other one was tried a moment ago.
    field.pass(15);
    field.trouble = true;
    field.pass(5);
    field.cards[0].carrier = false;
    field.carriers = 1;
    field.pass(1);
    assert_eq!(field.choice.chosen(), Some(B));
    // Gone for good, and back as another card of the kernel.
    field.cards.remove(0);
    field.card((0, 9), 1);
    field.carriers = 2;
    field.pass(60);
    assert_eq!(field.choice.chosen(), Some(B));
}

#[test]
fn where_nothing_is_reached_the_trials_become_rare_and_the_caller_goes_on() {
    let mut field = Field::new(|_| Reach::No);
    field.card(A, 0);
    field.card(B, 3);
    field.pass(9);
    assert!(!field.choice.is_settled(field.now));
    field.pass(2);
    assert!(field.choice.is_settled(field.now));
    field.pass(3600);
    assert!((100..=150).contains(&field.trials.len()), "{}", field.trials.len());
    field.reach = Box::new(only(A));
    field.pass(65);
    assert_eq!(field.choice.chosen(), Some(A));
}

#[test]
fn what_answers_like_something_else_is_only_used_in_want_of_a_source() {
    let portal = |key| if key == A { Reach::Doubtful } else { Reach::Yes };
    let mut field = Field::new(portal);
    field.card(A, 3);
    field.pass(1);
    field.card(B, 1);
    field.pass(8);
    assert_eq!(field.choice.chosen(), Some(B));

    let mut field = Field::new(|key| if key == A { Reach::Doubtful } else { Reach::No });
    field.card(B, 3);
    field.card(A, 1);
    field.pass(15);
    assert_eq!(field.choice.chosen(), Some(A));
}

#[test]
fn of_cards_that_seem_as_good_another_gets_its_turn_while_requests_fail() {
    let mut field = Field::new(|_| Reach::Yes);
    field.card(A, 1);
    field.card(B, 1);
    field.pass(2);
    let mut seen = Vec::new();
    for _ in 0..20 {
        field.trouble = true;
        field.pass(10);
        seen.extend(field.choice.chosen());
    }
    seen.dedup();
    assert!(seen.starts_with(&[A, B, A, B]), "{seen:?}");
    // Not while the download goes on.
    let before = field.choice.chosen();
    for _ in 0..20 {
        field.trouble = true;
        field.received += 20 << 20;
        field.pass(10);
    }
    assert_eq!(field.choice.chosen(), before);
}

#[test]
fn a_card_without_an_address_is_waited_for_only_until_the_first_reaches_a_source() {
    // The other one has a cable and no DHCP server.
    let mut field = Field::new(only(A));
    field.card(A, 3);
    field.pass(1);
    assert!(field.choice.is_settled(field.now));
    // The first leads nowhere, and the other may get an address yet.
    let mut field = Field::new(|_| Reach::No);
    field.card(A, 3);
    field.pass(5);
    assert!(!field.choice.is_settled(field.now));
}

#[test]
fn without_sources_a_gateway_decides() {
    let mut field = Field { choice: CardChoice::new(false), ..Field::new(|_| Reach::No) };
    field.card(A, 0);
    field.pass(1);
    assert_eq!((field.choice.chosen(), field.choice.is_settled(field.now)), (Some(A), true));
    field.card(B, 2);
    field.pass(1);
    assert_eq!(field.choice.chosen(), Some(B));
    field.card((1, 4), 2);
    field.pass(60);
    assert_eq!((field.choice.chosen(), field.trials.len()), (Some(B), 0));
}
