//! The waiting list: whose turn it is, who may wait at all, and that no place is free while somebody waits for it.

use super::queue::{Refused, Terms, Turn, Waiter, WaitingList};
use crate::clock::Millis;
use crate::config::Order;
use crate::rng::Rng;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

fn list(order: Order, max_waiting: usize) -> Arc<WaitingList> {
    let list = Arc::new(WaitingList::new());
    list.renew(Terms { max_waiting, max_wait: 1_000, order });
    list
}

/// What has happened to it by now.
fn turn(waiter: &mut Waiter) -> Option<Turn> {
    match pin!(waiter.turn()).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(turn) => Some(turn),
        Poll::Pending => None,
    }
}

/// One that has found nothing.
fn enter(list: &Arc<WaitingList>, now: Millis) -> Waiter {
    let mut waiter = list.enter(None, false, now).expect("there is room");
    while turn(&mut waiter) == Some(Turn::Try) {
        waiter.failed();
    }
    waiter
}

/// Which of them are told to try for one place; each gets nothing.
fn tried(list: &WaitingList, waiters: &mut [Waiter]) -> Vec<usize> {
    list.nudge(false);
    let mut tried = Vec::new();
    for (index, waiter) in waiters.iter_mut().enumerate() {
        if turn(waiter) == Some(Turn::Try) {
            tried.push(index);
            waiter.failed();
        }
    }
    tried
}

#[test]
fn the_first_in_order_has_its_turn() {
    for (order, expected) in [(Order::Fifo, 0), (Order::Lifo, 2), (Order::Adaptive, 0)] {
        let list = list(order, 10);
        let mut waiters: Vec<Waiter> = (1..=3).map(|now| enter(&list, now)).collect();
        assert_eq!(tried(&list, &mut waiters), [expected], "{order:?}");
    }
}

#[test]
fn an_adaptive_queue_turns_round_when_the_oldest_has_waited_for_half_of_its_time() {
    let list = list(Order::Adaptive, 10);
    let mut waiters = vec![enter(&list, 1), enter(&list, 2)];
    list.review(501);
    assert_eq!(turn(&mut waiters[0]), Some(Turn::Try));
    waiters[0].failed();
    list.review(502);
    assert_eq!(turn(&mut waiters[1]), Some(Turn::Try));
    waiters[1].failed();
    drop(waiters.remove(0));
    waiters.push(enter(&list, 503));
    assert_eq!(tried(&list, &mut waiters), [1], "the oldest is now 501 old");
    drop(waiters.remove(0));
    waiters.push(enter(&list, 504));
    assert_eq!(tried(&list, &mut waiters), [0], "and now it is young");
}

#[test]
fn two_places_are_two_turns() {
    let list = list(Order::Fifo, 10);
    let mut waiters: Vec<Waiter> = (1..=3).map(|now| enter(&list, now)).collect();
    list.nudge(false);
    list.nudge(false);
    let turns: Vec<_> = waiters.iter_mut().map(turn).collect();
    assert_eq!(turns, [Some(Turn::Try), Some(Turn::Try), None]);
}

#[test]
fn who_leaves_hands_its_turn_on() {
    let list = list(Order::Fifo, 10);
    let mut waiters: Vec<Waiter> = (1..=3).map(|now| enter(&list, now)).collect();
    list.nudge(false);
    drop(waiters.remove(0));
    assert_eq!(turn(&mut waiters[0]), Some(Turn::Try), "it had not tried yet");
    drop(waiters.remove(0));
    assert_eq!(turn(&mut waiters[0]), Some(Turn::Try), "it had not said what came of it");
    waiters.remove(0).served(9);
    assert!(list.is_empty());
}

#[test]
fn who_may_not_have_every_backend_hands_its_turn_on() {
    let list = list(Order::Fifo, 10);
    let mut choosy = list.enter(None, true, 1).unwrap();
    assert_eq!(turn(&mut choosy), Some(Turn::Try));
    choosy.failed();
    let mut easy = enter(&list, 2);
    assert_eq!(turn(&mut choosy), Some(Turn::Try), "somebody has to look when one comes that is not choosy");
    choosy.failed();
    assert_eq!(turn(&mut easy), Some(Turn::Try));
    easy.failed();
    list.nudge(false);
    assert_eq!((turn(&mut easy), turn(&mut choosy)), (None, Some(Turn::Try)));
    choosy.failed();
    assert_eq!((turn(&mut choosy), turn(&mut easy)), (None, Some(Turn::Try)));
    easy.failed();
    assert_eq!((turn(&mut choosy), turn(&mut easy)), (None, None), "it has looked for all");
}

/// Of two places, one that may have neither was told, and one that is about to take the first.
#[test]
fn who_comes_while_somebody_takes_one_of_two_places_is_told_of_the_other() {
    let list = list(Order::Lifo, 10);
    let mut choosy = list.enter(None, true, 1).unwrap();
    let mut easy = enter(&list, 2);
    assert_eq!((turn(&mut choosy), turn(&mut easy)), (Some(Turn::Try), None));
    choosy.failed();
    assert_eq!(turn(&mut easy), Some(Turn::Try));
    easy.failed();
    list.nudge(false);
    list.nudge(false);
    assert_eq!((turn(&mut easy), turn(&mut choosy)), (Some(Turn::Try), Some(Turn::Try)));
    choosy.failed();
    let mut newcomer = enter(&list, 3);
    assert_eq!(turn(&mut newcomer), None);
    easy.served(4);
    assert_eq!(turn(&mut newcomer), Some(Turn::Try));
}

#[test]
fn who_comes_back_has_its_place_again() {
    let list = list(Order::Fifo, 10);
    let first = enter(&list, 1);
    let place = first.place();
    let mut waiters = vec![enter(&list, 2)];
    first.served(3);
    waiters.push(list.enter(Some(place), true, 4).unwrap());
    assert_eq!(turn(&mut waiters[1]), Some(Turn::Try), "what it could have may be free");
    waiters[1].failed();
    assert_eq!(turn(&mut waiters[0]), Some(Turn::Try));
    waiters[0].failed();
    list.nudge(false);
    assert_eq!(turn(&mut waiters[0]), None);
    assert_eq!(turn(&mut waiters[1]), Some(Turn::Try));
}

#[test]
fn a_list_that_is_full_refuses_the_newest_or_evicts_the_oldest() {
    let fifo = list(Order::Fifo, 2);
    let _waiters = [enter(&fifo, 1), enter(&fifo, 1)];
    assert_eq!(fifo.enter(None, false, 1).err(), Some(Refused::Full));

    let lifo = list(Order::Lifo, 2);
    let mut waiters = [enter(&lifo, 1), enter(&lifo, 1)];
    let _newest = enter(&lifo, 1);
    assert_eq!((turn(&mut waiters[0]), turn(&mut waiters[1])), (Some(Turn::Evicted), None));
    assert_eq!(lifo.len(), 2);
    drop(waiters);
    assert_eq!(lifo.len(), 1);
}

#[test]
fn who_cannot_make_it_is_refused_at_once_but_never_the_first() {
    let list = list(Order::Fifo, 1_000);
    let first = enter(&list, 1);
    list.review(5_000);
    assert_eq!(list.enter(None, false, 5_000).err(), Some(Refused::Hopeless), "nobody was served in five seconds");
    drop(first);
    let _first = enter(&list, 5_001);
}

/// Backends with room for some, as the pool has them.
struct World {
    list: Arc<WaitingList>,
    rooms: Vec<u32>,
    used: Vec<u32>,
    now: Millis,
}

/// One that waits, and which backends it may not have.
struct Session {
    waiter: Waiter,
    tried: Vec<usize>,
    /// What it has been told and hasn't done yet.
    act: Option<Turn>,
}

impl World {
    fn claim(&mut self, tried: &[usize], rng: &mut Rng) -> Option<usize> {
        let count = self.rooms.len();
        let start = rng.below(count as u64) as usize;
        let found = (start..start + count)
            .map(|index| index % count)
            .find(|index| self.used[*index] < self.rooms[*index] && !tried.contains(index))?;
        self.used[found] += 1;
        Some(found)
    }

    fn release(&mut self, backend: usize) {
        self.used[backend] -= 1;
        self.list.nudge(false);
    }
}

/// Anybody may come, go, be served and be refused at any time, between any two steps of the others: when nobody is
/// about to try any more, nobody waits for a place that is there.
#[test]
fn no_place_is_free_while_somebody_waits_for_it() {
    for seed in 0..2_000 {
        let rng = &mut Rng::from_seed(seed);
        let order = [Order::Fifo, Order::Lifo, Order::Adaptive][seed as usize % 3];
        let rooms: Vec<u32> = (0..=rng.below(3)).map(|_| rng.below(3) as u32).collect();
        let mut world = World { list: list(order, 6), used: vec![0; rooms.len()], rooms, now: 1 };
        let (mut waiting, mut served): (Vec<Session>, Vec<usize>) = (Vec::new(), Vec::new());
        for step in 0..300 {
            world.now += rng.below(100);
            match rng.below(9) {
                // Half of a newcomer's way in: its claim comes later.
                0 | 1 => {
                    let tried: Vec<usize> = (0..world.rooms.len()).filter(|_| rng.below(3) == 0).collect();
                    let place = waiting.last().map(|last: &Session| last.waiter.place() + 100);
                    let place = place.filter(|place| {
                        rng.below(4) == 0 && waiting.iter().all(|other| other.waiter.place() != *place)
                    });
                    if let Ok(waiter) = world.list.enter(place, !tried.is_empty(), world.now) {
                        waiting.push(Session { waiter, tried, act: None });
                    }
                }
                2 if !waiting.is_empty() => drop(waiting.swap_remove(rng.below(waiting.len() as u64) as usize)),
                3 | 4 if !served.is_empty() => {
                    let backend = served.swap_remove(rng.below(served.len() as u64) as usize);
                    world.release(backend);
                }
                5 => {
                    let index = rng.below(world.rooms.len() as u64) as usize;
                    world.rooms[index] = rng.below(4) as u32;
                    world.list.review(world.now);
                }
                6 if world.list.is_empty() => served.extend(world.claim(&[], rng)),
                _ => go_on(&mut world, &mut waiting, &mut served, rng),
            }
            if step % 7 == 0 {
                // Whoever is told to try does so, and so may bring it about that another is.
                for steps in 0.. {
                    assert!(steps < 10_000, "seed {seed}, step {step}: they tell each other without end");
                    if !waiting.iter_mut().any(is_about_to_act) {
                        break;
                    }
                    go_on(&mut world, &mut waiting, &mut served, rng);
                }
                for session in &waiting {
                    let free = (0..world.rooms.len())
                        .find(|index| world.used[*index] < world.rooms[*index] && !session.tried.contains(index));
                    assert_eq!(free, None, "seed {seed}, step {step}: it waits beside a place that is free");
                }
            }
        }
        drop(waiting);
        assert!(world.list.is_empty());
    }
}

fn is_about_to_act(session: &mut Session) -> bool {
    session.act = session.act.or_else(|| turn(&mut session.waiter));
    session.act.is_some()
}

/// A step of somebody that waits: half of one, so that others may come in between.
fn go_on(world: &mut World, waiting: &mut Vec<Session>, served: &mut Vec<usize>, rng: &mut Rng) {
    if waiting.is_empty() {
        return;
    }
    let index = rng.below(waiting.len() as u64) as usize;
    let session = &mut waiting[index];
    match session.act.take() {
        None => session.act = turn(&mut session.waiter),
        Some(Turn::Evicted) => drop(waiting.swap_remove(index)),
        Some(Turn::Try) => match world.claim(&session.tried, rng) {
            Some(backend) => {
                served.push(backend);
                waiting.swap_remove(index).waiter.served(world.now);
            }
            None => session.waiter.failed(),
        },
    }
}
