// Divides a run among threads.
//
// Threads take whole images of a batch. What is left over is divided by rows: each thread owns one contiguous
// range, the rows at its borders are double-buffered, and there is one barrier a step.

#include <algorithm>
#include <atomic>
#include <optional>
#include <vector>

#include "nca.hpp"
#include "parallel.hpp"
#include "sweep.hpp"

namespace nca {

namespace {

constexpr int kThreadRows = 4; // fewer rows a thread are not worth a barrier

// Where an image is divided among threads: thread i owns rows cuts[i] .. cuts[i + 1] - 1.
std::vector<int> cut_rows(const Image& image, int steps, int threads, int least, Lookout& lookout) {
    std::vector<uint64_t> work(image.height + 1, 0); // firing cells above row y
    for (int y = 0; y < image.height; ++y) {
        uint64_t fires = 0;
        for (int step = 0; image.masks && step < steps && !lookout.stop(image.width); ++step)
            for (int x = 0; x < image.width; ++x)
                fires += image.mask(step, y)[x] != 0;
        work[y + 1] = work[y] + (image.masks ? fires : 1);
    }
    std::vector<int> cuts(threads + 1, 0);
    cuts[threads] = image.height;
    for (int i = 1; i < threads; ++i) {
        const uint64_t share = work[image.height] * i / threads;
        const int y = static_cast<int>(std::lower_bound(work.begin(), work.end(), share) - work.begin());
        cuts[i] = std::clamp(y, cuts[i - 1] + least, image.height - (threads - i) * least);
    }
    return cuts;
}

// The old values of the rows on both sides of every cut, for even and for odd steps.
class Borders {
  public:
    Borders(int cuts, int rows, size_t row_floats)
        : rows_(rows), row_floats_(row_floats), data_(static_cast<size_t>(cuts) * 4 * rows * row_floats) {}

    Edges edges(int thread, int threads, int step) const {
        Edges edges;
        if (thread > 0)
            edges.above = at(thread - 1, 0, step);
        if (thread + 1 < threads)
            edges.below = at(thread, 1, step);
        return edges;
    }

    // Stores the values that a thread's outermost rows have before `step`.
    void store(const Image& image, int first, int last, int thread, int threads, int step) {
        if (thread > 0)
            std::copy_n(image.row(first), rows_ * row_floats_, at(thread - 1, 1, step));
        if (thread + 1 < threads)
            std::copy_n(image.row(last - rows_), rows_ * row_floats_, at(thread, 0, step));
    }

  private:
    float* at(int cut, int side, int step) const {
        return data_.data() + static_cast<size_t>((cut * 2 + side) * 2 + (step & 1)) * rows_ * row_floats_;
    }

    int rows_;
    size_t row_floats_;
    Buffer data_;
};

} // namespace

bool run(const Rule& rule, float* state, size_t count, int height, int width, int steps, const Fire& fire,
         int threads, const Interrupt& interrupt) {
    const Rule::Packed& packed = rule.packed();
    if (count == 0 || height == 0 || width == 0 || steps == 0)
        return true;
    check_size(packed, height, width);

    const auto image = [&](size_t member) {
        return image_of(packed, state, count, height, width, fire, member);
    };
    const int least = std::max(packed.radius, kThreadRows);
    const size_t useful = std::max<size_t>(count, std::max(1, height / least));
    Team team(static_cast<int>(std::min<size_t>(std::max(threads, 1), useful)));
    const int size = team.size();
    // Whole images first. The rest go by rows, unless there is about one for each part.
    const int parts = std::min(size, std::max(1, height / least));
    size_t whole = count / size * size;
    if (4 * (count - whole) >= 3 * static_cast<size_t>(parts))
        whole = count;

    Watch watch(interrupt);
    std::vector<Sweep> sweeps;
    sweeps.reserve(size);
    for (int i = 0; i < size; ++i)
        sweeps.emplace_back(packed, width, Lookout(watch, i == 0));
    Lookout lookout(watch, true);
    std::vector<std::vector<int>> cuts;
    for (size_t member = whole; member < count; ++member)
        cuts.push_back(cut_rows(image(member), steps, parts, least, lookout));
    std::optional<Borders> borders;
    if (whole < count)
        borders.emplace(parts - 1, packed.radius, static_cast<size_t>(width) * packed.channels);

    std::atomic<size_t> next{0};
    Barrier barrier(parts, watch);
    team.run(watch, [&](int thread) {
        Sweep& sweep = sweeps[thread];
        for (size_t member; (member = next.fetch_add(1)) < whole && !watch.stopped();) {
            const Image whole_image = image(member);
            for (int step = 0; step < steps; ++step)
                if (sweep.step(whole_image, 0, height, step, {}))
                    break;
        }
        if (thread >= parts)
            return;
        for (size_t member = whole; member < count; ++member) {
            const Image part = image(member);
            const int first = cuts[member - whole][thread], last = cuts[member - whole][thread + 1];
            borders->store(part, first, last, thread, parts, 0);
            if (barrier.wait())
                return;
            for (int step = 0; step < steps; ++step) {
                sweep.step(part, first, last, step, borders->edges(thread, parts, step));
                borders->store(part, first, last, thread, parts, step + 1);
                if (barrier.wait())
                    return;
            }
        }
    });
    return !watch.stopped();
}

} // namespace nca
