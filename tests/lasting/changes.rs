//! Changes under load: nobody who connects or stays connected may notice.

use crate::kit::{Config, Tidegate, eventually};
use crate::load::{Echoes, Load};
use rustix::process::Signal;

/// Or the tests below could not fail.
#[test]
fn the_load_notices_what_goes_wrong() {
    let echoes = Echoes::new(2);
    let mut tidegate = Tidegate::start(Config::over(&echoes.addresses));
    let address = tidegate.addr().tcp();
    let load = Load::start(vec![address], 500, &[address], 20);
    eventually("some are served", || load.served() > 200);
    let report = load.finish();
    assert!(report.wrong.is_empty() && report.served > 200 && report.compared > 0 && report.rate > 0.0, "{report:?}");

    let load = Load::start(vec![address], 500, &[address], 20);
    eventually("some are served", || load.served() > 200);
    assert_eq!(load.wrong(""), 0);
    tidegate.leaks_not_asked();
    tidegate.signal(Signal::KILL);
    tidegate.wait();
    eventually("it is noticed", || load.wrong("of a stream") == 20 && load.wrong("connect") > 20);
    assert!(!load.finish().wrong.is_empty());
}
