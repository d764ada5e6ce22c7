//! The cache against plain rows.

use super::*;

const SHAPE: KvShape = KvShape { n_layers: 3, n_kv_heads: 2, head_dim: 6 };

/// Keys and values of positions `from .. to`; `seed` tells sequences apart.
fn rows(seed: usize, layer: usize, from: usize, to: usize) -> (Vec<f32>, Vec<f32>) {
    let n = SHAPE.n_kv_heads * SHAPE.head_dim;
    let value = |i: usize| (seed * 1_000_000 + layer * 100_000 + from * n + i) as f32;
    let k: Vec<f32> = (0..(to - from) * n).map(value).collect();
    let v = k.iter().map(|k| -k).collect();
    (k, v)
}

fn append(cache: &mut KvCache, id: SequenceId, seed: usize, n: usize) -> Result<(), Error> {
    let from = cache.len(id);
    cache.extend(id, n)?;
    for layer in 0..SHAPE.n_layers {
        let (k, v) = rows(seed, layer, from, from + n);
        cache.write(layer, id, from, &k, &v);
    }
    Ok(())
}

/// Asserts that positions `from .. to` hold what `append` with that seed wrote.
fn check(cache: &KvCache, id: SequenceId, seed: usize, from: usize, to: usize) {
    let pages = cache.pages(id);
    for layer in 0..SHAPE.n_layers {
        for position in from..to {
            let (k, v) = rows(seed, layer, position, position + 1);
            for head in 0..SHAPE.n_kv_heads {
                let (keys, values) = pages.tile(layer, head, position / PAGE);
                for d in 0..SHAPE.head_dim {
                    let at = head * SHAPE.head_dim + d;
                    assert_eq!(keys[d * PAGE + position % PAGE], k[at]);
                    assert_eq!(values[position % PAGE * 16 + d], v[at]);
                }
            }
        }
    }
}

fn pages(n: usize) -> KvCache {
    KvCache::new(SHAPE, n * SHAPE.page_bytes() + 5)
}

#[test]
fn forks_share_full_pages_and_part_ways() {
    let mut cache = pages(20);
    let parent = cache.create();
    append(&mut cache, parent, 1, 40).unwrap();
    assert_eq!(cache.bytes_used(), SHAPE.bytes_for(40));
    let aligned = cache.fork(parent, 32).unwrap();
    assert_eq!(cache.bytes_used(), 3 * SHAPE.page_bytes(), "full pages are shared");
    let ragged = cache.fork(parent, 35).unwrap();
    assert_eq!(cache.bytes_used(), 4 * SHAPE.page_bytes(), "the partial page is copied");
    append(&mut cache, aligned, 2, 3).unwrap();
    append(&mut cache, ragged, 3, 30).unwrap();
    append(&mut cache, parent, 4, 1).unwrap();
    check(&cache, parent, 1, 0, 40);
    check(&cache, parent, 4, 40, 41);
    check(&cache, aligned, 1, 0, 32);
    check(&cache, aligned, 2, 32, 35);
    check(&cache, ragged, 1, 0, 35);
    check(&cache, ragged, 3, 35, 65);
    cache.free(parent);
    check(&cache, aligned, 1, 0, 32);
    check(&cache, ragged, 1, 0, 35);
    cache.free(aligned);
    cache.free(ragged);
    assert_eq!(cache.bytes_used(), 0);
    assert_eq!(cache.bytes_available(), cache.bytes_budget());
}

#[test]
fn a_truncated_sequence_copies_the_shared_page_it_ends_in() {
    let mut cache = pages(8);
    let parent = cache.create();
    append(&mut cache, parent, 1, 48).unwrap();
    let child = cache.fork(parent, 48).unwrap();
    cache.truncate(child, 20);
    assert_eq!((cache.len(child), cache.bytes_used()), (20, SHAPE.bytes_for(48)));
    append(&mut cache, child, 2, 20).unwrap();
    check(&cache, parent, 1, 0, 48);
    check(&cache, child, 1, 0, 20);
    check(&cache, child, 2, 20, 40);
    cache.truncate(child, 0);
    assert!(cache.is_empty(child) && cache.bytes_used() == SHAPE.bytes_for(48));
}

#[test]
fn a_full_cache_says_so_and_changes_nothing() {
    let mut cache = pages(3);
    let id = cache.create();
    append(&mut cache, id, 1, 20).unwrap();
    let Error::Full { needed, available, budget } = append(&mut cache, id, 1, 40).unwrap_err();
    let page = SHAPE.page_bytes();
    assert_eq!((needed, available, budget), (2 * page, page, 3 * page));
    assert_eq!(cache.len(id), 20);
    let other = cache.fork(id, 20).unwrap();
    assert!(cache.fork(id, 18).is_err());
    assert!(cache.extend(other, 13).is_err());
    append(&mut cache, other, 2, 12).unwrap();
    check(&cache, id, 1, 0, 20);
    check(&cache, other, 2, 20, 32);
    cache.free(id);
    append(&mut cache, other, 3, 10).unwrap();
    check(&cache, other, 3, 32, 42);
    let message = Error::Full { needed, available, budget }.to_string();
    let want =
        format!("the KV cache is full: {needed} bytes are needed and {available} of {budget} are free");
    assert_eq!(message, want);
}

#[test]
fn tiles_of_a_page_never_overlap() {
    for slot in 0..20 {
        let mut starts: Vec<usize> = (0..SHAPE.n_layers)
            .flat_map(|layer| (0..SHAPE.n_kv_heads).map(move |head| (layer, head)))
            .map(|(layer, head)| tile_range(&SHAPE, layer, head, slot).start)
            .collect();
        starts.sort_unstable();
        let want: Vec<usize> = (0..SHAPE.n_tiles()).map(|i| i * SHAPE.tile_len()).collect();
        assert_eq!(starts, want);
    }
}
