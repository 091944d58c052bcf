// A block of THREADS threads to a row of Z (m, K): softmax, its loss with gradient and hits; and a batch's tally.
// Sums are taken in one order, whatever the machine does: the same run gives the same bits.

const int THREADS = 128;

// Half of the largest number of T: what the specification holds differences of logits to.
template <typename T> struct Limits;
template <> struct Limits<float> { static __device__ float half() { return 1.7014117e38f; } };
template <> struct Limits<double> { static __device__ double half() { return 8.988465674311579e307; } };

template <typename T>
__device__ T largest_of_block(T value)
{
    __shared__ T shared[THREADS];
    shared[threadIdx.x] = value;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half && shared[threadIdx.x + half] > shared[threadIdx.x])
            shared[threadIdx.x] = shared[threadIdx.x + half];
        __syncthreads();
    }
    T largest = shared[0];
    __syncthreads();
    return largest;
}

template <typename T>
__device__ T sum_of_block(T value)
{
    __shared__ T shared[THREADS];
    shared[threadIdx.x] = value;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half)
            shared[threadIdx.x] += shared[threadIdx.x + half];
        __syncthreads();
    }
    T sum = shared[0];
    __syncthreads();
    return sum;
}

// The first of the largest values of the block: where each thread's own largest stands.
template <typename T>
__device__ long long first_largest_of_block(T value, long long place)
{
    __shared__ T values[THREADS];
    __shared__ long long places[THREADS];
    values[threadIdx.x] = value;
    places[threadIdx.x] = place;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        int other = threadIdx.x + half;
        if (threadIdx.x < half
            && (values[other] > values[threadIdx.x]
                || (values[other] == values[threadIdx.x] && places[other] < places[threadIdx.x]))) {
            values[threadIdx.x] = values[other];
            places[threadIdx.x] = places[other];
        }
        __syncthreads();
    }
    long long first = places[0];
    __syncthreads();
    return first;
}

// P = softmax(z) of this block's row. Gives the row's largest logit and the sum of the exponentials.
// A difference of logits beyond what T holds is -inf, whose exponential is the right 0.
template <typename T>
__device__ void softmax_of_row(const T *z, T *p, long long K, T &largest, T &sum)
{
    largest = z[0];
    for (long long k = threadIdx.x; k < K; k += THREADS)
        largest = z[k] > largest ? z[k] : largest;
    largest = largest_of_block(largest);
    sum = 0;
    for (long long k = threadIdx.x; k < K; k += THREADS)
        sum += exp(z[k] - largest);
    sum = sum_of_block(sum);
    for (long long k = threadIdx.x; k < K; k += THREADS)
        p[k] = exp(z[k] - largest) / sum;
}

template <typename T>
__global__ void softmax(const T *Z, T *P, long long K)
{
    T largest, sum;
    softmax_of_row(Z + blockIdx.x * K, P + blockIdx.x * K, K, largest, sum);
}

template <typename T>
__global__ void softmax_cross_entropy(
    const T *Z, const long long *labels, T *P, T *dZ, T *losses, T *hits, long long K, double scale)
{
    const T *z = Z + blockIdx.x * K;
    T *p = P + blockIdx.x * K, *dz = dZ + blockIdx.x * K;
    long long label = labels[blockIdx.x];
    T largest, sum;
    softmax_of_row(z, p, K, largest, sum);
    T own_largest = -1;
    long long own_place = K;
    for (long long k = threadIdx.x; k < K; k += THREADS) {
        dz[k] = (p[k] - (k == label ? T(1) : T(0))) * T(scale);
        if (p[k] > own_largest) {
            own_largest = p[k];
            own_place = k;
        }
    }
    long long predicted = first_largest_of_block(own_largest, own_place);
    if (threadIdx.x == 0) {
        // logits at the two ends of T differ by more than it holds: finite logits, finite loss
        T difference = largest - z[label];
        losses[blockIdx.x] = log(sum) + (difference < Limits<T>::half() ? difference : Limits<T>::half());
        hits[blockIdx.x] = predicted == label ? T(1) : T(0);
    }
}

// One block: loss = sum of weights · losses, correct = sum of hits, and both added to the totals. n losses, k a row.
template <typename T>
__global__ void tally(
    const T *losses, const T *hits, const T *weights, T *loss, T *correct, double *loss_total, double *correct_total,
    long long n, long long k)
{
    double own_loss = 0, own_correct = 0;
    for (long long i = threadIdx.x; i < n; i += THREADS) {
        own_loss += double(losses[i]) * double(weights[i / k]);
        own_correct += double(hits[i]);
    }
    own_loss = sum_of_block(own_loss);
    own_correct = sum_of_block(own_correct);
    if (threadIdx.x == 0) {
        loss[0] = T(own_loss);
        correct[0] = T(own_correct);
        loss_total[0] += double(loss[0]);
        correct_total[0] += double(correct[0]);
    }
}
