//! The line of `systemctl status`: how many sessions there are, and which config serves them or that a stop waits for
//! them.
//!
//! Owns its words, its pace and its length; that the last reload was refused stays in it, with every mistake, until
//! another config is taken. Without a service manager there is nothing to do.

use super::gates::notify;
use super::start::Shared;
use crate::admin::Phase;
use sd_notify::NotifyState;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;

/// From one look to the next.
const PACE: Duration = Duration::from_secs(5);

/// Of what is said of a refused config, in bytes: systemd takes no notice of a message of more than 4096.
const ROOM: usize = 2_048;

/// Tells for ever.
pub async fn tell(shared: Shared, mut phase: watch::Receiver<Phase>) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return std::future::pending().await;
    }
    let mut told = String::new();
    // An error means that the loop is gone.
    while let Ok(now) = phase.wait_for(|phase| *phase != Phase::Starting).await.map(|now| *now) {
        let line = if now == Phase::Draining { draining(&shared) } else { of(&shared) };
        if line != told {
            notify(&[NotifyState::Status(&line)]);
            told = line;
        }
        sleep(PACE).await;
    }
}

/// As things are.
pub fn of(shared: &Shared) -> String {
    let status = shared.config_status.load();
    let refused = status.last_refused.as_ref().map(|refused| refused.text.as_str());
    line(shared.process.active() as u64, shared.table.load().generation, refused)
}

/// During a stop.
pub fn draining(shared: &Shared) -> String {
    format!("draining, {} left", sessions(shared.process.active() as u64))
}

fn line(active: u64, generation: u64, refused: Option<&str>) -> String {
    let refused = refused.map(|text| format!("; the last reload was refused: {}", in_one(text))).unwrap_or_default();
    format!("serving {}, generation {generation}{refused}", sessions(active))
}

/// All lines that there is room for in one, and how many there are besides. The first one is there in any case, if only
/// its beginning.
fn in_one(text: &str) -> String {
    let mut lines = text.lines();
    let mut one = lines.next().unwrap_or_default().to_owned();
    one.truncate((0..=ROOM).rfind(|end| one.is_char_boundary(*end)).unwrap_or_default());
    let mut left = lines.clone().count();
    for line in lines {
        if one.len() + line.len() > ROOM {
            break;
        }
        one = one + "; " + line;
        left -= 1;
    }
    if left == 0 { one } else { format!("{one}; and {left} more") }
}

fn sessions(number: u64) -> String {
    format!("{} session{}", grouped(number), if number == 1 { "" } else { "s" })
}

/// With commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.char_indices() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_can_read_it() {
        assert_eq!(line(0, 1, None), "serving 0 sessions, generation 1");
        assert_eq!(line(1, 2, None), "serving 1 session, generation 2");
        assert_eq!(line(1_234, 7, None), "serving 1,234 sessions, generation 7");
        assert_eq!(line(12_345_678, 10, None), "serving 12,345,678 sessions, generation 10");
        assert_eq!(
            line(0, 3, Some("lb.toml:1:1: wrong")),
            "serving 0 sessions, generation 3; the last reload was refused: lb.toml:1:1: wrong"
        );
    }

    #[test]
    fn every_mistake_is_in_it_as_far_as_there_is_room() {
        assert_eq!(in_one("a:1:1: wrong\na:2:2: too"), "a:1:1: wrong; a:2:2: too");
        let many = "a mistake\n".repeat(1_000);
        let one = in_one(&many);
        let said = one.matches("a mistake").count();
        assert!(said > 100 && one.len() < ROOM + 32 && one.ends_with(&format!("; and {} more", 1_000 - said)), "{one}");
        let long = in_one(&("ü".repeat(ROOM) + "\nanother"));
        assert_eq!(long, "ü".repeat(ROOM / 2) + "; and 1 more");
    }
}
