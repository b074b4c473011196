// The members of a mixture, and how the work on their tables is shared between threads.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

using Index = int64_t;
enum Member { kInstance, kLayer, kBatch, kGroup, kMembers };

// As Layout of closed_form.py numbers it: rows = N samples, sample j of statistics group
// j % replicas; which members there are, and where in the buffer the weights and theirs begin.
struct Layout {
  Index rows, replicas, channels, channel_groups, area, count, weights;
  Index members[kMembers], at[kMembers];
};

// How far one table entry of a member reaches: its row and column in that member's own table.
struct Place {
  Index row, column_divisor;  // entry (row, c / column_divisor) of a table with `columns` columns
  Index columns;

  // How often the entry changes along a row; where every column has its own, they are one run.
  Index runs() const { return column_divisor == 1 ? 1 : columns; }
};

inline Place place(Index member, Index j, const Layout& size) {
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
    default: return 0;  // instance: the moments themselves
  }
}

// The tables in a buffer of that layout.
template <typename S> struct Tables {
  const Layout& size;
  S* buffer;
  S *mean, *var, *center, *scale, *shift, *rstd, *weights;

  Tables(const Layout& layout, S* start) : size(layout), buffer(start) {
    const Index table = size.rows * size.channels;
    mean = start, var = mean + table, center = var + table, scale = center + table;
    shift = scale + table, rstd = shift + table, weights = start + size.weights;
  }
  // The k-th member's: instance's are the moments themselves.
  S* mean_of(Index k) const {
    return size.members[k] == kInstance ? mean : buffer + size.at[k];
  }
  S* var_of(Index k) const {
    const Index member = size.members[k];
    return member == kInstance ? var : buffer + size.at[k] + table_size(member, size);
  }
};

// ---- threads -----------------------------------------------------------------------------------

// What one thread has of the [N, C] tables: some rows, or of BN, whose sets are columns, some
// columns. No sum is cut in two, so that its digits are those of one thread.
struct Part {
  Index row, rows_end, column, columns_end;
};

// Fewer entries are done sooner than a second thread wakes up.
constexpr Index kEntriesForThreads = 32768;

// Calls body(rows, columns), the same share of the rows and of the columns, in each thread.
template <typename Body> inline void share(const Layout& size, int threads, Body body) {
  const Index rows = size.rows, channels = size.channels;
  const Part whole{0, rows, 0, channels};
  if (threads == 1 || rows * channels < kEntriesForThreads) return body(whole, whole);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int t = 0; t < threads; ++t) {
    const auto cut = [=](Index all, int at) { return all * at / threads; };
    body(Part{cut(rows, t), cut(rows, t + 1), 0, channels},
         Part{0, rows, cut(channels, t), cut(channels, t + 1)});
  }
}

// ---- a part of a member's table ----------------------------------------------------------------

// Calls body(first, last, entry) for each run of columns that shares one entry, or, where every
// column has its own, once with the entry of column 0. `own` says which.
template <typename Body> inline void over_runs(const Place& p, const Part& part, Body body) {
  if (p.column_divisor == 1) {
    body(part.column, part.columns_end, p.row * p.columns, true);
  } else {
    for (Index g = 0; g < p.columns; ++g)
      body(g * p.column_divisor, (g + 1) * p.column_divisor, p.row * p.columns + g, false);
  }
}

// Calls body(entry) for each that the part has.
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
    over_runs(place(member, j, size), part, [=](Index first, Index last, Index e, bool own) {
      if (own) {
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

// to[c] = body(from[c], table[entry of (j, c)]), of row j.
template <typename S, typename Body>
void with_member(const Place& p, const S* from, const S* table, S* to, const Part& part, Body body) {
  over_runs(p, part, [=](Index first, Index last, Index e, bool own) {
    const S* __restrict in = from;
    const S* __restrict entry = table + e;
    S* __restrict out = to;
    if (own) {
      for (Index c = first; c < last; ++c) out[c] = body(in[c], entry[c]);
    } else {
      for (Index c = first; c < last; ++c) out[c] = body(in[c], entry[0]);
    }
  });
}

// to[c] += weight * table[entry of (j, c)], of row j.
template <typename S>
inline void add_member(const Place& p, S weight, const S* table, S* to, const Part& part) {
  over_runs(p, part, [=](Index first, Index last, Index e, bool own) {
    S* __restrict out = to;
    const S* __restrict in = table + e;
    if (own) {
      for (Index c = first; c < last; ++c) out[c] += weight * in[c];
    } else {
      for (Index c = first; c < last; ++c) out[c] += weight * in[0];
    }
  });
}

// Sums over c of gradient[c] * table[entry of (j, c)], of row j, to one number for each run.
template <typename S>
void inner_products(const Place& p, const S* gradient, const S* table, double* sums,
                    const Part& part) {
  over_runs(p, part, [=, &sums](Index first, Index last, Index e, bool own) {
    const S* __restrict g = gradient;
    const S* __restrict in = table + e;
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (Index c = first; c < last; ++c) total += double(g[c]) * in[own ? c : 0];
    *sums++ = total;
  });
}

}  // namespace
