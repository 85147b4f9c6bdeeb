//! How many places each holder should have.

/// One holder's part in a division.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    pub(crate) needs: u32,
    pub(crate) open: u32,
}

/// Divides `limit` by need. The sum is at most the limit, and nobody with need is left out if there
/// are enough places for all of them.
///
/// If all needs fit, each is met, open connections are kept as far as there is room, and half of what
/// is left is handed out, so that a growing need is met without a question; the other half is for
/// holders to come. If they do not fit, one each, the rest in proportion to the needs.
pub(crate) fn split(limit: u32, parts: &[Part]) -> Vec<u32> {
    let needs: u64 = parts.iter().map(|p| u64::from(p.needs)).sum();
    if needs <= u64::from(limit) {
        return all_met(limit, needs, parts);
    }
    let needers = parts.iter().filter(|p| p.needs > 0).count();
    let spare = u64::from(limit).saturating_sub(needers as u64);
    let weights = needs - needers as u64;
    let mut out: Vec<u32> = Vec::with_capacity(parts.len());
    let mut rests: Vec<(u64, usize)> = Vec::new();
    let mut left = spare;
    for (n, p) in parts.iter().enumerate() {
        if p.needs == 0 {
            out.push(0);
            continue;
        }
        let exact = spare * u64::from(p.needs - 1);
        let whole = exact.checked_div(weights).unwrap_or(0);
        rests.push((exact.checked_rem(weights).unwrap_or(0), n));
        left -= whole;
        out.push(1 + u32::try_from(whole).unwrap_or(u32::MAX - 1));
    }
    // The largest remainders; among equals the first holder.
    rests.sort_by_key(|(rest, n)| (std::cmp::Reverse(*rest), *n));
    for (rest, n) in rests {
        if left == 0 || rest == 0 {
            break;
        }
        if let Some(places) = out.get_mut(n) {
            *places += 1;
            left -= 1;
        }
    }
    out
}

fn all_met(limit: u32, needs: u64, parts: &[Part]) -> Vec<u32> {
    let mut left = limit.saturating_sub(u32::try_from(needs).unwrap_or(u32::MAX));
    let needers = parts.iter().filter(|p| p.needs > 0).count();
    let mut out: Vec<u32> = Vec::with_capacity(parts.len());
    for p in parts {
        let kept = p.open.saturating_sub(p.needs).min(left);
        left -= kept;
        out.push(p.needs + kept);
    }
    let more = u32::try_from(needers).map_or(0, |n| left.checked_div(2 * n).unwrap_or(0));
    for (places, p) in out.iter_mut().zip(parts) {
        if p.needs > 0 {
            *places += more;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn by_need(limit: u32, needs: &[u32]) -> Vec<u32> {
        let parts: Vec<Part> = needs.iter().map(|n| Part { needs: *n, open: 0 }).collect();
        split(limit, &parts)
    }

    #[test]
    fn places_follow_need() {
        assert_eq!(by_need(20, &[100, 100]), [10, 10]);
        assert_eq!(by_need(20, &[300, 100]), [15, 5]);
        assert_eq!(by_need(20, &[1000, 1]), [19, 1]);
        assert_eq!(by_need(3, &[5, 5]), [2, 1]);
        assert_eq!(by_need(3, &[5, 0, 5]), [2, 0, 1]);
        assert_eq!(by_need(20, &[1]), [10], "room to grow");
        assert_eq!(by_need(1, &[1]), [1]);
        let idle = Part { needs: 0, open: 8 };
        assert_eq!(split(10, &[idle, Part { needs: 4, open: 4 }]), [6, 4]);
        assert_eq!(split(10, &[idle]), [8]);
    }

    proptest! {
        #[test]
        fn the_sum_fits_and_nobody_is_left_out(
            limit in 1u32..50,
            parts in prop::collection::vec((0u32..200, 0u32..50), 1..12),
        ) {
            let parts: Vec<Part> = parts.into_iter().map(|(needs, open)| Part { needs, open }).collect();
            let needers = parts.iter().filter(|p| p.needs > 0).count();
            prop_assume!(needers <= limit as usize);
            let out = split(limit, &parts);
            prop_assert!(out.iter().sum::<u32>() <= limit);
            let needs: u32 = parts.iter().map(|p| p.needs).sum();
            for (p, got) in parts.iter().zip(&out) {
                prop_assert!(p.needs == 0 || *got > 0);
                if needs <= limit { prop_assert!(*got >= p.needs); }
            }
            if needs > limit { prop_assert_eq!(out.iter().sum::<u32>(), limit); }
        }
    }
}
