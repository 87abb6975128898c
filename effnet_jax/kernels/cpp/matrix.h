// Matrix products on panels: C [M, N] (+)= A [M, K] · B [K, N], where B's columns are packed in panels.
#pragma once

#include <algorithm>

#include "vector.h"

inline int Panels(int columns) { return (columns + kPanel - 1) / kPanel; }
inline int PaddedTo(int columns, int unit) { return (columns + unit - 1) / unit * unit; }

// Columns of [rows, columns] in panels [panel][rows][kPanel], zeros after the last.
inline void Pack(const float* from, long stride, int rows, int columns, float* to) {
  for (int panel = 0; panel < Panels(columns); ++panel) {
    int width = std::min(kPanel, columns - panel * kPanel);
    for (int row = 0; row < rows; ++row, to += kPanel) {
      std::memcpy(to, from + row * stride + panel * kPanel, 4 * width);
      std::memset(to + width, 0, 4 * (kPanel - width));
    }
  }
}

// One panel of the transposed [columns, rows] of a matrix [rows, columns].
inline void PackTransposedPanel(const float* from, int rows, int columns, int panel, float* to) {
  for (int i = 0; i < kPanel; ++i) {
    const int row = panel * kPanel + i;
    for (int column = 0; column < columns; ++column)
      to[column * kPanel + i] = row < rows ? from[static_cast<long>(row) * columns + column] : 0.0f;
  }
}

// R rows of sums. Where `transposed`, A is kept as [K, M].
template <int R, int V, bool transposed>
inline void Tile(int depth, const float* a, long a_stride, const float* b, long b_stride, float* c, long c_stride,
                 bool add, int width) {
  Vec sums[R][V];
  for (int i = 0; i < R; ++i)
    for (int v = 0; v < V; ++v) sums[i][v] = Vec{};
  for (int k = 0; k < depth; ++k, b += b_stride) {
    Vec row[V];
    for (int v = 0; v < V; ++v) {
      row[v] = Load(b + v * kLanes);
      InRegister(&row[v]);  // else each sum reads it again
    }
    for (int i = 0; i < R; ++i) {
      const Vec value = All(transposed ? a[k * a_stride + i] : a[i * a_stride + k]);
      for (int v = 0; v < V; ++v) sums[i][v] += value * row[v];
    }
  }
  float whole[R * V * kLanes];
  const bool some = width != V * kLanes;
  float* to = some ? whole : c;
  const long to_stride = some ? V * kLanes : c_stride;
  if (add && !some)
    for (int i = 0; i < R; ++i)
      for (int v = 0; v < V; ++v) Add(to + i * to_stride + v * kLanes, sums[i][v]);
  else
    for (int i = 0; i < R; ++i)
      for (int v = 0; v < V; ++v) Store(to + i * to_stride + v * kLanes, sums[i][v]);
  if (!some) return;
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < width; ++j) {
      float* at = c + i * c_stride + j;
      *at = add ? *at + whole[i * V * kLanes + j] : whole[i * V * kLanes + j];
    }
}

template <int V, bool transposed>
inline void TileRows(int rows, int depth, const float* a, long a_stride, const float* b, long b_stride, float* c,
                     long c_stride, bool add, int width) {
  const long step = transposed ? 1 : a_stride;
  int i = 0;
  for (; i + kRows <= rows; i += kRows)
    Tile<kRows, V, transposed>(depth, a + i * step, a_stride, b, b_stride, c + i * c_stride, c_stride, add, width);
  if (kRows > 4 && i + 4 <= rows) {
    Tile<4, V, transposed>(depth, a + i * step, a_stride, b, b_stride, c + i * c_stride, c_stride, add, width);
    i += 4;
  }
  switch (rows - i) {
    case 3:
      return Tile<3, V, transposed>(depth, a + i * step, a_stride, b, b_stride, c + i * c_stride, c_stride, add, width);
    case 2:
      return Tile<2, V, transposed>(depth, a + i * step, a_stride, b, b_stride, c + i * c_stride, c_stride, add, width);
    case 1:
      return Tile<1, V, transposed>(depth, a + i * step, a_stride, b, b_stride, c + i * c_stride, c_stride, add, width);
  }
}

// One panel of C: `width` columns of it. B's rows lie b_stride apart.
template <bool transposed>
__attribute__((noinline)) void MultiplyPanel(int rows, int depth, const float* a, long a_stride, const float* b, long b_stride, float* c,
                          long c_stride, bool add, int width) {
  if (width <= kLanes)
    TileRows<1, transposed>(rows, depth, a, a_stride, b, b_stride, c, c_stride, add, width);
  else if (width <= 2 * kLanes)
    TileRows<2, transposed>(rows, depth, a, a_stride, b, b_stride, c, c_stride, add, width);
  else
    TileRows<3, transposed>(rows, depth, a, a_stride, b, b_stride, c, c_stride, add, width);
}

// All columns of C; rows in chunks of A that stay in the second cache. B has `b_rows` rows a panel.
inline void Multiply(int rows, int depth, int columns, const float* a, long a_stride, const float* b, long b_rows,
                     float* c, long c_stride, bool add) {
  const int chunk = std::max(kRows, 32768 / std::max(depth, 1) / kRows * kRows);
  for (int row = 0; row < rows; row += chunk)
    for (int panel = 0; panel < Panels(columns); ++panel)
      MultiplyPanel<false>(std::min(chunk, rows - row), depth, a + row * a_stride, a_stride, b + panel * b_rows * kPanel,
                           kPanel, c + row * c_stride + panel * kPanel, c_stride, add,
                           std::min(kPanel, columns - panel * kPanel));
}

// C [M, N] (+)= Aᵀ · B, A [K, M] and B's panels [panel][b_rows][kPanel]: K in chunks that stay in the first caches.
inline void MultiplyTransposed(int rows, int depth, int columns, const float* a, long a_stride, const float* b,
                               long b_rows, float* c, long c_stride, bool add) {
  const int chunk = std::max(32, std::min(256, 16384 / std::max(rows, 1)));
  for (int k = 0; k < depth; k += chunk)
    for (int panel = 0; panel < Panels(columns); ++panel)
      MultiplyPanel<true>(rows, std::min(chunk, depth - k), a + k * a_stride, a_stride, b + (panel * b_rows + k) * kPanel,
                          kPanel, c + panel * kPanel, c_stride, add || k > 0, std::min(kPanel, columns - panel * kPanel));
}
