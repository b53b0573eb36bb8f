//! What an administrator is shown of a pool in which others chose all names.

use bstr::BString;

use super::{Pool, at, b};
use crate::pool::Request;

/// What fits into one message with room to spare, in bytes.
const MESSAGE: usize = 15 << 20;

/// Returns a name of 255 bytes that are longer when they are shown.
fn name(number: u32) -> BString {
    let mut name = vec![0xff; 245];
    name.extend(format!("{number:010}").bytes());
    name.into()
}

#[test]
fn what_is_shown_of_many_long_names_fits_into_a_message_and_says_how_many_there_are() {
    let mut pool = Pool::new("p");
    for number in 0..50_000 {
        let worker = pool.register(name(number).as_ref(), 1).expect("the name is free");
        match number % 2 {
            0 => pool.unregister(at(0), worker),
            _ => pool.set_active(at(0), worker, true),
        }
    }
    let hint = BString::from(vec![0xff; 1024]);
    for number in 0..2_000 {
        pool.submit(at(0), name(number).as_ref(), Request { hint: hint.as_ref(), urgent: true });
    }
    let shown = pool.show(at(0));
    assert!(shown.len() < MESSAGE, "{}", shown.len());
    let shown = shown.to_string();
    let more: Vec<_> = shown.lines().filter(|line| line.starts_with("  … and ")).collect();
    assert_eq!(more.len(), 2, "{more:?}");
    assert!(shown.contains("… and 1000 more"));
    // A list of all that are known takes their names, and 16 bytes for each.
    let listed: usize = pool.workers().map(|worker| worker.name.len().next_multiple_of(8) + 16).sum();
    assert!(listed < MESSAGE, "{listed}");
}

#[test]
fn of_a_long_name_the_beginning_is_shown() {
    let mut pool = Pool::new("p");
    let long = "x".repeat(255);
    let hint = format!("{long}yz");
    pool.submit(at(0), b(&long), Request { hint: b(&hint), urgent: false });
    let shown = pool.show(at(0)).to_string();
    assert!(shown.contains(&format!("{long}:{long}…@")), "{shown}");
}
