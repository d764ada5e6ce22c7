//! Slurm's lists of nodes: `gpu[01-03,07],login1`.

/// More hosts than any cluster has.
const MOST_HOSTS: usize = 1 << 16;

/// Returns the hosts of a list, in its order. A name may have several bracketed lists of numbers and ranges; numbers keep their
/// leading zeros.
///
/// Errors with what is wrong with the list.
pub fn expand(list: &str) -> Result<Vec<String>, String> {
    let mut hosts = Vec::new();
    for name in split(list)? {
        hosts.extend(expand_name(name)?);
        if hosts.len() > MOST_HOSTS {
            return Err(format!("more than {MOST_HOSTS} hosts"));
        }
    }
    Ok(hosts)
}

/// Returns the parts between commas that stand outside brackets.
fn split(list: &str) -> Result<Vec<&str>, String> {
    let (mut names, mut start, mut is_inside) = (Vec::new(), 0, false);
    for (at, c) in list.char_indices() {
        match c {
            '[' if is_inside => return Err("a bracket within brackets".to_owned()),
            '[' => is_inside = true,
            ']' if !is_inside => return Err("a bracket closes that none opened".to_owned()),
            ']' => is_inside = false,
            ',' if !is_inside => {
                names.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if is_inside {
        return Err("a bracket is not closed".to_owned());
    }
    names.push(&list[start..]);
    match names.iter().any(|name| name.trim().is_empty()) {
        true => Err("a host without a name".to_owned()),
        false => Ok(names),
    }
}

fn expand_name(name: &str) -> Result<Vec<String>, String> {
    let mut hosts = vec![String::new()];
    let mut rest = name.trim();
    while let Some((before, behind)) = rest.split_once('[') {
        // `split` saw that it is closed
        let (numbers, after) = behind.split_once(']').unwrap_or((behind, ""));
        let numbers = expand_numbers(numbers)?;
        if hosts.len().saturating_mul(numbers.len()) > MOST_HOSTS {
            return Err(format!("more than {MOST_HOSTS} hosts"));
        }
        let with_numbers =
            |host: &String| numbers.iter().map(|n| format!("{host}{before}{n}")).collect::<Vec<_>>();
        hosts = hosts.iter().flat_map(with_numbers).collect();
        rest = after;
    }
    hosts.iter_mut().for_each(|host| host.push_str(rest));
    Ok(hosts)
}

fn expand_numbers(text: &str) -> Result<Vec<String>, String> {
    let mut numbers = Vec::new();
    for range in text.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (low, high) = (number(first)?, number(last)?);
        if low > high {
            return Err(format!("the range {range} ends before it begins"));
        }
        if (high - low) as usize >= MOST_HOSTS || numbers.len() > MOST_HOSTS {
            return Err(format!("more than {MOST_HOSTS} hosts"));
        }
        let width = first.len();
        numbers.extend((low..=high).map(|n| format!("{n:0width$}")));
    }
    Ok(numbers)
}

fn number(text: &str) -> Result<u32, String> {
    let is_digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let found = text.parse().ok().filter(|_| is_digits);
    found.ok_or_else(|| format!("`{text}` in brackets is no number"))
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn lists_are_written_out_in_order() {
        let hosts = |list: &str| expand(list).unwrap().join(" ");
        assert_eq!(hosts("gpu[01-03,07],login1"), "gpu01 gpu02 gpu03 gpu07 login1");
        assert_eq!(hosts("node1"), "node1");
        assert_eq!(hosts("n[9-11]"), "n9 n10 n11");
        assert_eq!(hosts("n[098-101].cluster"), "n098.cluster n099.cluster n100.cluster n101.cluster");
        assert_eq!(hosts("r[1-2]n[03,05],x"), "r1n03 r1n05 r2n03 r2n05 x");
        assert_eq!(hosts("[1-2]"), "1 2");
    }

    #[test]
    fn lists_that_are_none_are_refused() {
        for (list, why) in [
            ("", "without a name"),
            ("a,,b", "without a name"),
            ("a[1-3", "not closed"),
            ("a1]", "none opened"),
            ("a[1,[2]]", "within brackets"),
            ("a[]", "is no number"),
            ("a[1-b]", "`b` in brackets is no number"),
            ("a[+1]", "is no number"),
            ("a[1-2-3]", "`2-3` in brackets is no number"),
            ("a[5-2]", "ends before it begins"),
            ("a[99999999999]", "is no number"),
            ("a[0-4294967295]", "more than"),
            ("a[0-999]b[0-999]", "more than"),
        ] {
            let found = expand(list).unwrap_err();
            assert!(found.contains(why), "{list}: {found}");
        }
    }
}
