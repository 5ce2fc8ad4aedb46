#include "orthogonal.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "../dispatch.hpp"

namespace nca {
namespace {

using Values = std::vector<float>;

void transpose(float* out, const float* in, std::size_t rows, std::size_t columns) {
    for (std::size_t i = 0; i < rows; ++i)
        for (std::size_t j = 0; j < columns; ++j)
            out[j * rows + i] = in[i * columns + j];
}

} // namespace

bool orthogonalize(float* matrix, std::size_t rows, std::size_t columns, const Interrupt& interrupt) {
    constexpr int steps = 5;
    constexpr double nothing = 1e-12;
    constexpr float linear = 3.4445F, cubic = -4.7750F, quintic = 2.0315F;
    const std::size_t size = rows * columns, m = std::min(rows, columns), n = std::max(rows, columns);
    double squares = 0; // in double: the square of a small gradient is below the smallest float
    for (std::size_t i = 0; i < size; ++i)
        squares += static_cast<double>(matrix[i]) * matrix[i];
    const double norm = std::sqrt(squares);
    if (norm < nothing) {
        std::fill_n(matrix, size, 0.0F);
        return true;
    }
    Watch watch(interrupt);
    Lookout lookout(watch, true);
    // By some rows at a time, between which it can be interrupted
    const auto product = [&, &kernels = active_kernels()](const Values& a, const Values& b, std::size_t m,
                                                          std::size_t k, std::size_t n, Values& out) {
        const std::size_t most = std::max<std::size_t>((1 << 26) / std::max<std::size_t>(k * n, 1), 1) * 8;
        for (std::size_t i = 0, part; i < m; i += part) {
            part = std::min(m - i, most);
            kernels.multiply(a.data() + i * k, b.data(), static_cast<int>(part), static_cast<int>(k),
                             static_cast<int>(n), out.data() + i * n);
            if (lookout.stop(part * k * n))
                return false;
        }
        return true;
    };
    Values x(size), turned(size), gram(m * m), inner(m * m), powers(m * m);
    for (std::size_t i = 0; i < size; ++i)
        turned[i] = static_cast<float>(matrix[i] / norm);
    // The smaller side first, so that products of x with itself are as small as can be
    if (rows > columns)
        transpose(x.data(), turned.data(), rows, columns);
    else
        x = turned;
    for (int step = 0; step < steps; ++step) {
        transpose(turned.data(), x.data(), m, n);
        std::fill(gram.begin(), gram.end(), 0.0F);
        if (!product(x, turned, m, n, m, gram))
            return false;
        // x = linear x + (cubic g + quintic g g) x with g = x x'
        for (std::size_t i = 0; i < m * m; ++i)
            inner[i] = quintic * gram[i];
        for (std::size_t i = 0; i < m; ++i)
            inner[i * (m + 1)] += cubic;
        std::fill(powers.begin(), powers.end(), 0.0F);
        if (!product(inner, gram, m, m, m, powers))
            return false;
        for (std::size_t i = 0; i < size; ++i)
            turned[i] = linear * x[i];
        if (!product(powers, x, m, m, n, turned))
            return false;
        x.swap(turned);
    }
    if (rows > columns)
        transpose(matrix, x.data(), columns, rows);
    else
        std::copy(x.begin(), x.end(), matrix);
    return true;
}

} // namespace nca
