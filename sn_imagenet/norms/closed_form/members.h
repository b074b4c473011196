// The members of a mixture, and how the work on their tables is shared between threads.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

using Index = int64_t;
enum Member { kInstance, kLayer, kBatch, kGroup, kMembers };

// Layout.numbers of combiner.py: rows = N samples, with sample j in statistics group j % replicas;
// the members, and the offsets in the buffer of the weights and of each member's tables.
struct Layout {
  Index rows, replicas, channels, channel_groups, area, count, weights;
  Index members[kMembers], at[kMembers];
};

// Where a member's own table holds the statistics of (sample j, channel c).
struct Entry {
  Index row, column_divisor;  // entry (row, c / column_divisor) of a table with `columns` columns
  Index columns;

  // Runs of columns along a row that share an entry; one run if each column has its own entry.
  Index runs() const { return column_divisor == 1 ? 1 : columns; }
};

inline Entry entry_of(Index member, Index j, const Layout& size) {
  switch (member) {
    case kLayer: return {j, size.channels, 1};
    case kBatch: return {j % size.replicas, 1, size.channels};
    case kGroup: return {j, size.channels / size.channel_groups, size.channel_groups};
    default: return {j, 1, size.channels};
  }
}

inline Index table_size(Index member, const Layout& size) {
  switch (member) {
    case kLayer: return size.rows;
    case kBatch: return size.replicas * size.channels;
    case kGroup: return size.rows * size.channel_groups;
    default: return 0;  // IN uses the moments themselves
  }
}

// Pointers to the tables in a buffer of this layout.
template <typename S> struct Tables {
  const Layout& size;
  S* buffer;
  S *mean, *var, *center, *scale, *shift, *rstd, *weights;

  Tables(const Layout& layout, S* start) : size(layout), buffer(start) {
    const Index table = size.rows * size.channels;
    mean = start, var = mean + table, center = var + table, scale = center + table;
    shift = scale + table, rstd = shift + table, weights = start + size.weights;
  }
  // Tables of the k-th member; for IN they are the moments.
  S* mean_of(Index k) const {
    return size.members[k] == kInstance ? mean : buffer + size.at[k];
  }
  S* var_of(Index k) const {
    const Index member = size.members[k];
    return member == kInstance ? var : buffer + size.at[k] + table_size(member, size);
  }
};

// ---- threads -----------------------------------------------------------------------------------

// One thread's part of the [N, C] tables: some rows, or, for BN, whose sets are columns, some
// columns. No sum is split, so results do not depend on the number of threads.
struct Part {
  Index row, rows_end, column, columns_end;
};

// With fewer entries, one thread finishes before a second one wakes up.
constexpr Index kEntriesForThreads = 32768;

// Calls body(rows, columns) in each thread, with its part of the rows and of the columns.
template <typename Body> inline void for_each_part(const Layout& size, int threads, Body body) {
  const Index rows = size.rows, channels = size.channels;
  const Part whole{0, rows, 0, channels};
  if (threads == 1 || rows * channels < kEntriesForThreads) return body(whole, whole);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int t = 0; t < threads; ++t) {
    const auto bound = [=](Index all, int at) { return all * at / threads; };
    body(Part{bound(rows, t), bound(rows, t + 1), 0, channels},
         Part{0, rows, bound(channels, t), bound(channels, t + 1)});
  }
}

// ---- a part of a member's table ----------------------------------------------------------------

// Calls body(first, last, entry, false) for each run of columns that shares one entry or, if every
// column has its own entry, body(first, last, entry of column 0, true).
template <typename Body> inline void over_runs(const Entry& p, const Part& part, Body body) {
  if (p.column_divisor == 1) {
    body(part.column, part.columns_end, p.row * p.columns, true);
  } else {
    for (Index g = 0; g < p.columns; ++g)
      body(g * p.column_divisor, (g + 1) * p.column_divisor, p.row * p.columns + g, false);
  }
}

// Calls body(entry) for each entry of the part.
template <typename Body>
inline void over_entries(Index member, const Layout& size, const Part& part, Body body) {
  if (member == kBatch) {
    for (Index r = 0; r < size.replicas; ++r)
      for (Index c = part.column; c < part.columns_end; ++c) body(r * size.channels + c);
  } else {
    const Index columns = table_size(member, size) / size.rows;
    for (Index e = part.row * columns; e < part.rows_end * columns; ++e) body(e);
  }
}

// to[entry] = average over a member's set of row(j)[c].
template <typename S, typename Row>
void average(Index member, Row row, S* to, const Layout& size, const Part& part) {
  over_entries(member, size, part, [=](Index e) { to[e] = S(0); });
  for (Index j = part.row; j < part.rows_end; ++j) {
    const S* __restrict from = row(j);
    over_runs(entry_of(member, j, size), part,
              [=](Index first, Index last, Index e, bool per_column) {
      if (per_column) {
        S* __restrict out = to + e;
        for (Index c = first; c < last; ++c) out[c] += from[c];
      } else {
        S total = 0;
#pragma omp simd reduction(+ : total)
        for (Index c = first; c < last; ++c) total += from[c];
        to[e] += total;
      }
    });
  }
  const S inverse = S(table_size(member, size)) / S(size.rows * size.channels);
  over_entries(member, size, part, [=](Index e) { to[e] *= inverse; });
}

// For row j: to[c] = body(from[c], table[entry of (j, c)]).
template <typename S, typename Body>
void with_member(const Entry& p, const S* from, const S* table, S* to, const Part& part,
                 Body body) {
  over_runs(p, part, [=](Index first, Index last, Index e, bool per_column) {
    const S* __restrict in = from;
    const S* __restrict entry = table + e;
    S* __restrict out = to;
    if (per_column) {
      for (Index c = first; c < last; ++c) out[c] = body(in[c], entry[c]);
    } else {
      for (Index c = first; c < last; ++c) out[c] = body(in[c], entry[0]);
    }
  });
}

// For row j: to[c] += weight * table[entry of (j, c)].
template <typename S>
inline void add_member(const Entry& p, S weight, const S* table, S* to, const Part& part) {
  over_runs(p, part, [=](Index first, Index last, Index e, bool per_column) {
    S* __restrict out = to;
    const S* __restrict in = table + e;
    if (per_column) {
      for (Index c = first; c < last; ++c) out[c] += weight * in[c];
    } else {
      for (Index c = first; c < last; ++c) out[c] += weight * in[0];
    }
  });
}

// For row j: the sum over c of gradient[c] * table[entry of (j, c)], one number for each run.
template <typename S>
void inner_products(const Entry& p, const S* gradient, const S* table, double* sums,
                    const Part& part) {
  over_runs(p, part, [=, &sums](Index first, Index last, Index e, bool per_column) {
    const S* __restrict g = gradient;
    const S* __restrict in = table + e;
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (Index c = first; c < last; ++c) total += double(g[c]) * in[per_column ? c : 0];
    *sums++ = total;
  });
}

}  // namespace
