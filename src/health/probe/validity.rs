//! Between which moments a certificate is good.
//!
//! Owns the few steps through its DER that lead to the two dates, which the verifier judges but doesn't tell. The
//! verifier has understood the certificate before; whatever isn't as expected here is `None`. Source: RFC 5280, 4.1.

/// Seconds of Unix time, both of them within.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub from: u64,
    pub until: u64,
}

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

impl Validity {
    /// Of a certificate in DER.
    pub fn of(certificate: &[u8]) -> Option<Self> {
        let mut whole = Der(certificate);
        let mut certificate = Der(whole.take(SEQUENCE)?);
        let mut signed = Der(certificate.take(SEQUENCE)?);
        if signed.0.first() == Some(&VERSION) {
            signed.take(VERSION)?;
        }
        let _serial = signed.take(INTEGER)?;
        let _algorithm = signed.take(SEQUENCE)?;
        let _issuer = signed.take(SEQUENCE)?;
        let mut validity = Der(signed.take(SEQUENCE)?);
        Some(Self { from: validity.time()?, until: validity.time()? })
    }
}

/// What is left of a sequence of elements.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The content of the next element, if it is of this kind.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (&first, rest) = self.0.split_first()?;
        let (&length, mut rest) = rest.split_first()?;
        let length = match length {
            short @ 0..=0x7f => usize::from(short),
            long @ 0x81..=0x84 => {
                let (digits, behind) = rest.split_at_checked(usize::from(long & 0x7f))?;
                rest = behind;
                digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit))
            }
            _ => return None,
        };
        let (content, behind) = rest.split_at_checked(length)?;
        self.0 = behind;
        (first == tag).then_some(content)
    }

    fn time(&mut self) -> Option<u64> {
        if self.0.first()? == &GENERALIZED_TIME {
            let (century, rest) = self.take(GENERALIZED_TIME)?.split_at_checked(2)?;
            return unix_time(number(century)?, rest);
        }
        let text = self.take(UTC_TIME)?;
        let century = if number(text.get(..2)?)? >= 50 { 19 } else { 20 };
        unix_time(century, text)
    }
}

/// Of `YYMMDDhhmmssZ` in this century; nothing before 1970 has a Unix time here.
fn unix_time(century: u64, text: &[u8]) -> Option<u64> {
    if text.len() != 13 || text[12] != b'Z' {
        return None;
    }
    let pair = |index: usize| number(&text[2 * index..2 * index + 2]);
    let (year, month, day) = (100 * century + pair(0)?, pair(1)?, pair(2)?);
    if year < 1_970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Years that begin with March have the leap day at their end, and months of a regular length.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    // Days from the first of March of the year 0 to the first of January of 1970.
    let days = days.checked_sub(719_468)?;
    Some(((days * 24 + pair(3)?) * 60 + pair(4)?) * 60 + pair(5)?)
}

fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |number, digit| Some(10 * number + u64::from(char::from(*digit).to_digit(10)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_unix_times() {
        for (century, text, expected) in [
            (19, "700101000000Z", 0),
            (20, "000229235959Z", 951_868_799),
            (20, "000301000000Z", 951_868_800),
            (20, "380119031408Z", 1 << 31),
            (99, "991231235959Z", 253_402_300_799),
        ] {
            assert_eq!(unix_time(century, text.as_bytes()), Some(expected), "{century}{text}");
        }
        for bad in ["", "700101000000", "701301000000Z", "700100000000Z", "7001010000xxZ", "7001010000000Z"] {
            assert_eq!(unix_time(19, bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(unix_time(19, b"691231235959Z"), None);
    }

    #[test]
    fn a_certificate_tells_its_dates_and_a_broken_one_nothing() {
        let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2_024, 2, 29);
        params.not_after = rcgen::date_time_ymd(2_051, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        // The later one is past what two digits of a year can say.
        let expected = Validity { from: 1_709_164_800, until: 2_556_144_000 };
        assert_eq!(Validity::of(certificate.der()), Some(expected));
        for length in 0..certificate.der().len().min(200) {
            assert_eq!(Validity::of(&certificate.der()[..length]), None);
        }
        assert_eq!(Validity::of(&[0xff; 1_000]), None);
    }
}
