// A mixture combines its [N, C] tables, forward and backward, for CPUs.
//
// A mixture normalizes with mean = sum_k w_k mean_k and var = sum_k w'_k var_k (Eq. (3)). Its
// members are any of in, ln, bn, gn. Batch, instance, layer and group normalization are mixtures
// of one member. Every function takes the layout of the tables, their buffer and the number of
// threads.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

using Index = int64_t;
enum Member { kInstance, kLayer, kBatch, kGroup, kMembers };

// The sizes of the tables, with sample j in statistics group j % replicas; the members; and the
// offsets in the buffer of the weights and of each member's statistics, with BN's at the end.
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

inline Layout layout_of(Index rows, Index replicas, Index channels, Index channel_groups,
                        Index area, const int64_t* members, Index count) {
  Layout size{rows, replicas, channels, channel_groups, area, count, 6 * rows * channels, {}, {}};
  Index end = size.weights + 2 * count, batch = 0;
  for (Index k = 0; k < count; ++k) {
    size.members[k] = members[k];
    size.at[k] = end;
    if (members[k] == kBatch) batch = k;
    else end += 2 * table_size(members[k], size);
  }
  if (size.members[batch] == kBatch) size.at[batch] = end;
  return size;
}

// The number of entries of the buffer.
inline Index buffer_size(const Layout& size) {
  Index total = size.weights + 2 * size.count;
  for (Index k = 0; k < size.count; ++k) total += 2 * table_size(size.members[k], size);
  return total;
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

// The member's mean and variance by the law of total variance (Eq. (5)). The mean is refined once
// by the average of the residuals: fp32 sums of large means lose digits that the variance needs.
template <typename S>
void member_statistics(Index member, const S* mean, const S* var, S* member_mean, S* member_var,
                       const Layout& size, const Part& part) {
  std::vector<S> scratch(size.channels);
  S* rest = scratch.data();
  const auto row = [=, &size](const S* table, Index j) { return table + j * size.channels; };
  average(member, [=](Index j) { return row(mean, j); }, member_mean, size, part);
  const auto remainder = [=, &size, &part](Index j) {
    with_member(entry_of(member, j, size), row(mean, j), member_mean, rest, part,
                [](S m, S mu) { return m - mu; });
    return rest;
  };
  average(member, remainder, member_var, size, part);
  over_entries(member, size, part, [=](Index e) { member_mean[e] += member_var[e]; });
  const auto square = [=, &size, &part](Index j) {
    with_member(entry_of(member, j, size), row(mean, j), member_mean, rest, part,
                [](S m, S mu) { return (m - mu) * (m - mu); });
    const S* __restrict within = row(var, j);
    for (Index c = part.column; c < part.columns_end; ++c) rest[c] += within[c];
    return rest;
  };
  average(member, square, member_var, size, part);
}

template <typename S> void softmax(const S* logits, int count, S* weights) {
  double top = logits[0], total = 0;
  for (int k = 1; k < count; ++k) top = std::max(top, double(logits[k]));
  std::vector<double> powers(count);
  for (int k = 0; k < count; ++k) total += powers[k] = std::exp(double(logits[k]) - top);
  for (int k = 0; k < count; ++k) weights[k] = S(powers[k] / total);
}

// Mean and variance of each member but IN; BN's are the stored ones if they are given.
template <typename S>
void mixture_statistics(const Layout& size, S* buffer, const S* stored_mean, const S* stored_var,
                        int threads) {
  const Tables<S> tables(size, buffer);
  for_each_part(size, threads, [=, &size](const Part& rows, const Part& columns) {
    for (Index k = 0; k < size.count; ++k) {
      const Index member = size.members[k];
      S *member_mean = tables.mean_of(k), *member_var = tables.var_of(k);
      if (member == kBatch && stored_mean) {
        over_entries(member, size, columns, [=, &size](Index e) {
          member_mean[e] = stored_mean[e % size.channels];
          member_var[e] = stored_var[e % size.channels];
        });
      } else if (member != kInstance) {
        member_statistics(member, tables.mean, tables.var, member_mean, member_var, size,
                          member == kBatch ? columns : rows);
      }
    }
  });
}

// Eq. (3) and the affine map's tables.
template <typename S>
void mixture_coefficients(const Layout& size, S* buffer, const S* mean_logits, const S* var_logits,
                          const S* gamma, const S* beta, double eps, int threads) {
  const Tables<S> tables(size, buffer);
  const Index channels = size.channels;
  const int count = int(size.count);
  S* mean_weights = tables.weights;
  S* var_weights = tables.weights + count;
  if (mean_logits) {
    softmax(mean_logits, count, mean_weights);
    softmax(var_logits, count, var_weights);
  } else {
    std::fill_n(mean_weights, 2 * count, S(1));
  }
  for_each_part(size, threads, [=, &size](const Part& rows, const Part&) {
    for (Index j = rows.row; j < rows.rows_end; ++j) {
      S* center = tables.center + j * channels;
      S* __restrict r = tables.rstd + j * channels;
      S* __restrict a = tables.scale + j * channels;
      S* __restrict b = tables.shift + j * channels;
      std::fill_n(center, channels, S(0));
      std::fill_n(r, channels, S(0));
      for (int k = 0; k < count; ++k) {
        const Entry p = entry_of(size.members[k], j, size);
        add_member<S>(p, mean_weights[k], tables.mean_of(k), center, rows);
        add_member<S>(p, var_weights[k], tables.var_of(k), r, rows);
      }
      for (Index c = 0; c < channels; ++c) {
        r[c] = S(1) / std::sqrt(r[c] + S(eps));
        a[c] = gamma ? r[c] * gamma[c] : r[c];
        b[c] = beta ? beta[c] : S(0);
      }
    }
  });
}

// dL/dlogits of a softmax with weights w, from dL/dw.
template <typename S> void softmax_gradient(const double* inner, const S* w, int count, S* out) {
  double mean = 0;
  for (int k = 0; k < count; ++k) mean += w[k] * inner[k];
  for (int k = 0; k < count; ++k) out[k] = S(w[k] * (inner[k] - mean));
}

// From backward's sums [2, N, C]: the gradients [2, N, C] of the combined mean (Eq. (8)) and
// variance (Eq. (7)), their averages over BN's sets (`batch` [2, R, C]), and the gradients of
// gamma, beta and the logits.
template <typename S>
void mixture_gradient_sums(const Layout& size, S* buffer, const S* sums, const S* gamma,
                           S* gradients, S* batch, S* dgamma, S* dbeta, S* dmean_logits,
                           S* dvar_logits, int threads) {
  const Tables<S> tables(size, buffer);
  const Index channels = size.channels, all = size.rows * channels;
  const int count = int(size.count);
  const S *sum_grad = sums, *sum_product = sums + all;
  S *dmean = gradients, *dvar = gradients + all;
  // One product for each member, row and run of columns; added up below in this order.
  const Index runs = std::max<Index>(1, size.channel_groups), stride = size.rows * runs;
  std::vector<double> products(dmean_logits ? 2 * count * stride : 0);
  double* member_products = products.data();
  for_each_part(size, threads, [=, &size](const Part& rows, const Part&) {
    for (Index j = rows.row; j < rows.rows_end; ++j) {
      // __restrict: with so many arrays the compiler would not check whether they overlap.
      const Index at = j * channels;
      const S* __restrict g = sum_grad + at;
      const S* __restrict product = sum_product + at;
      const S* __restrict mu = tables.mean + at;
      const S* __restrict center = tables.center + at;
      const S* __restrict a = tables.scale + at;
      const S* __restrict r = tables.rstd + at;
      S* __restrict dmean_j = dmean + at;
      S* __restrict dvar_j = dvar + at;
#pragma omp simd
      for (Index c = 0; c < channels; ++c) {
        const S dscale = product[c] + (mu[c] - center[c]) * g[c];
        dmean_j[c] = -a[c] * g[c];
        dvar_j[c] = S(-0.5) * dscale * (gamma ? gamma[c] : S(1)) * r[c] * r[c] * r[c];
      }
      for (int k = 0; k < count && dmean_logits; ++k) {
        const Entry p = entry_of(size.members[k], j, size);
        double* to = member_products + 2 * k * stride + j * runs;
        inner_products<S>(p, dmean + at, tables.mean_of(k), to, rows);
        inner_products<S>(p, dvar + at, tables.var_of(k), to + stride, rows);
      }
    }
  });
  for_each_part(size, threads, [=, &size](const Part&, const Part& columns) {
    const Index first = columns.column, last = columns.columns_end;
    if (dgamma) std::fill(dgamma + first, dgamma + last, S(0));
    if (dbeta) std::fill(dbeta + first, dbeta + last, S(0));
    for (Index j = 0; j < size.rows; ++j) {
      const Index at = j * channels;
      const S* __restrict g = sum_grad + at;
      const S* __restrict product = sum_product + at;
      const S* __restrict mu = tables.mean + at;
      const S* __restrict center = tables.center + at;
      const S* __restrict r = tables.rstd + at;
      if (S* __restrict to = dgamma)
        for (Index c = first; c < last; ++c)
          to[c] += (product[c] + (mu[c] - center[c]) * g[c]) * r[c];
      if (S* __restrict to = dbeta)
        for (Index c = first; c < last; ++c) to[c] += g[c];
    }
    if (std::find(size.members, size.members + count, kBatch) == size.members + count) return;
    average(kBatch, [=](Index j) { return dmean + j * channels; }, batch, size, columns);
    average(kBatch, [=](Index j) { return dvar + j * channels; },
            batch + table_size(kBatch, size), size, columns);
  });
  if (!dmean_logits) return;
  std::vector<double> inner_mean(count), inner_var(count);
  for (int k = 0; k < count; ++k) {
    const Index used = entry_of(size.members[k], 0, size).runs();
    const double* products_k = member_products + 2 * k * stride;
    for (Index j = 0; j < size.rows; ++j)
      for (Index run = 0; run < used; ++run) {
        inner_mean[k] += products_k[j * runs + run];
        inner_var[k] += products_k[stride + j * runs + run];
      }
  }
  softmax_gradient(inner_mean.data(), tables.weights, count, dmean_logits);
  softmax_gradient(inner_var.data(), tables.weights + count, count, dvar_logits);
}

// Eq. (9) on the tables: the input gradient's b and c (see Backend.input_gradient). Without `batch`
// BN uses stored statistics, through which no gradient flows.
template <typename S>
void mixture_gradient(const Layout& size, S* buffer, const S* gradients, const S* batch, S* b,
                      S* c_out, int threads) {
  const Tables<S> tables(size, buffer);
  const Index channels = size.channels, all = size.rows * channels;
  const S *dmean = gradients, *dvar = gradients + all;
  // Scratch for each member, since threads may be at different members at the same time.
  const Index longest = 2 * size.rows * std::max<Index>(1, size.channel_groups);
  std::vector<S> scratch(size.count * longest);
  S* all_averages = scratch.data();
  const S per_pixel = S(1) / S(size.area);
  for_each_part(size, threads, [=, &size](const Part& rows, const Part&) {
    const Index start = rows.row * channels, end = rows.rows_end * channels;
    std::fill(b + start, b + end, S(0));
    std::fill(c_out + start, c_out + end, S(0));
    for (Index k = 0; k < size.count; ++k) {
      const Index member = size.members[k];
      const Index entries = table_size(member, size);
      if (member == kBatch && !batch) continue;
      const S wm = tables.weights[k] * per_pixel;
      const S wv = tables.weights[size.count + k] * 2 * per_pixel;
      if (member == kInstance) {
        for (Index i = start; i < end; ++i) {
          c_out[i] += wm * dmean[i];
          b[i] += wv * dvar[i];
        }
        continue;
      }
      const S* member_mean = tables.mean_of(k);
      const S* averaged = batch;
      S* averages = all_averages + k * longest;
      if (member != kBatch) {
        average(member, [=](Index j) { return dmean + j * channels; }, averages, size, rows);
        average(member, [=](Index j) { return dvar + j * channels; }, averages + entries, size,
                rows);
        averaged = averages;
      }
      for (Index j = rows.row; j < rows.rows_end; ++j) {
        const S* __restrict mu = tables.mean + j * channels;
        S* __restrict bj = b + j * channels;
        S* __restrict cj = c_out + j * channels;
        over_runs(entry_of(member, j, size), rows,
                  [=](Index first, Index last, Index e, bool per_column) {
          const S* __restrict gm = averaged + e;
          const S* __restrict gv = averaged + entries + e;
          const S* __restrict m = member_mean + e;
          for (Index c = first; c < last; ++c) {
            const Index i = per_column ? c : 0;
            bj[c] += wv * gv[i];
            cj[c] += wm * gm[i] + wv * gv[i] * (mu[c] - m[i]);
          }
        });
      }
    }
  });
}

template <typename S>
void update_running(S* running_mean, S* running_var, const S* mean, const S* var, double momentum,
                    double unbias, Index channels) {
  for (Index c = 0; c < channels; ++c) {
    running_mean[c] += S(momentum) * (mean[c] - running_mean[c]);
    running_var[c] += S(momentum) * (var[c] * S(unbias) - running_var[c]);
  }
}

}  // namespace
